//! The words of Asterisk's own CLI, byte for byte (`main/db.c` of the shared-family patch).
//!
//! Columns are padded by bytes, not characters, as C's `%-50s` does.

use std::io::{self, Write};

use serde::Deserialize;

use crate::core::eid::Eid;
use crate::core::family::Mode;

pub const PUT_USAGE: &str = "\
Usage: database put <family> <key> <value>
       Adds or updates an entry in the Asterisk database for
       a given family, key, and value.
";
pub const GET_USAGE: &str = "\
Usage: database get <family> <key>
       Retrieves an entry in the Asterisk database for a given
       family and key.
";
pub const DEL_USAGE: &str = "\
Usage: database del <family> <key>
       Deletes an entry in the Asterisk database for a given
       family and key.
";
pub const DELTREE_USAGE: &str = "\
Usage: database deltree <family> [keytree]
   OR: database deltree <family>[/keytree]
       Deletes a family or specific keytree within a family
       in the Asterisk database.  The two arguments may be
       separated by either a space or a slash.
";
pub const SHOW_USAGE: &str = "\
Usage: database show [family [keytree]]
   OR: database show [family[/keytree]]
       Shows Asterisk database contents, optionally restricted
       to a given family, or family and keytree. The two arguments may
       be separated either by a space or by a slash.
";
pub const SHOWKEY_USAGE: &str = "\
Usage: database showkey <keytree>
       Shows Asterisk database contents, restricted to a given key.
";
pub const PUT_SHARED_USAGE: &str = "\
Usage: database put shared <family> <type>
       Creates a new shared family of the given type,
       where type is either 'unique' or 'global'.
";
pub const DEL_SHARED_USAGE: &str = "\
Usage: database del shared <family>
       Deletes the shared status of a database family.
";

/// Where the ": " between key and value stands, at the earliest, in bytes.
pub const KEY_WIDTH_BYTES: usize = 50;
/// How wide a value is at least, in bytes.
pub const VALUE_WIDTH_BYTES: usize = 25;
pub const HEADER: &str = "Key                                               : Data                      Shared";
pub const RULE: &str = "--------------------------------------------------  ------------------------- ------";

/// One entry of the `tree` and `keys` answers.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Entry {
    pub path: String,
    pub value: String,
    pub shared: Option<Mode>,
}

/// A `database show` table.
pub fn show(entries: &[Entry], out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{HEADER}\n{RULE}")?;
    for entry in entries {
        row(entry, out)?;
    }
    writeln!(out, "{} results found.", entries.len())
}

fn row(entry: &Entry, out: &mut dyn Write) -> io::Result<()> {
    let (path, value) = (&entry.path, &entry.value);
    let shared = match entry.shared {
        // Asterisk looks the first segment up, which is no shared family there.
        Some(_) if is_under_eid(path) => "",
        Some(Mode::Global) => "(G)",
        Some(Mode::Unique) => "(U)",
        None => "",
    };
    let (key_pad, value_pad) = (pad(path, KEY_WIDTH_BYTES), pad(value, VALUE_WIDTH_BYTES));
    writeln!(out, "{path}{:key_pad$}: {value}{:value_pad$} {shared}", "", "")
}

fn pad(text: &str, width_bytes: usize) -> usize {
    width_bytes.saturating_sub(text.len())
}

fn is_under_eid(path: &str) -> bool {
    path.split('/').nth(1).is_some_and(|first| first.parse::<Eid>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a real Asterisk printed; '$' marks line ends.
    const CAPTURE: &str = include_str!("../../tests/fixtures/cli-texts.txt");
    const PROMPT: &str = "ast1*CLI> ";

    /// What followed a command, the `nth` time it was given.
    fn captured(command: &str, nth: usize) -> String {
        let prompt = format!("{PROMPT}{command}\n");
        let rest = CAPTURE.split(&prompt).nth(nth + 1).expect("a captured command");
        rest.split(PROMPT).next().unwrap_or_default().replace("$\n", "\n")
    }

    fn table(rows: &[(&str, &str, Option<Mode>)]) -> String {
        let entries: Vec<Entry> = rows
            .iter()
            .map(|&(path, value, shared)| Entry { path: path.to_string(), value: value.to_string(), shared })
            .collect();
        let mut out = Vec::new();
        show(&entries, &mut out).expect("memory");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn tables_are_what_asterisk_printed() {
        let rows = [
            ("/__asterisk_shared_family/foo", "GLOBAL", None),
            ("/__asterisk_shared_family/uni", "UNIQUE", None),
            ("/foo/a", "1", Some(Mode::Global)),
            ("/foo/b/c", "2", Some(Mode::Global)),
            ("/foo/b/d", "2", Some(Mode::Global)),
            ("/other/a", "8", None),
            ("/uni/a", "7", Some(Mode::Unique)),
        ];
        assert_eq!(table(&rows), captured("database show", 0));
        assert_eq!(table(&rows[3..5]), captured("database show foo b", 0));
        assert_eq!(table(&[]), captured("database show nosuch", 0));
        assert_eq!(table(&rows[3..4]), captured("database showkey b/c", 0), "one is plural too");
    }

    #[test]
    fn usages_are_what_asterisk_printed() {
        for (command, usage) in [
            ("database put foo k1", PUT_USAGE),
            ("database get foo", GET_USAGE),
            ("database del foo", DEL_USAGE),
            ("database deltree", DELTREE_USAGE),
            ("database showkey", SHOWKEY_USAGE),
            ("database put shared bar", PUT_SHARED_USAGE),
            ("database put shared", PUT_SHARED_USAGE),
            ("core show help database del shared", DEL_SHARED_USAGE),
        ] {
            assert_eq!(usage, captured(command, 0), "{command}");
        }
    }

    #[test]
    fn columns_are_padded_by_bytes_and_rows_under_an_eid_stay_blank() {
        let real = include_str!("../../tests/fixtures/database-show.txt");
        for row in [
            ("/02:00:00:00:00:02/uni/a", "b", Some(Mode::Unique)),
            ("/AMPUSER/1001/cidname", "Łukasz Silva", None),
            ("/hotdesk/desk/06-027", "1028: since 2026-11-22 08:55", Some(Mode::Unique)),
        ] {
            let table = table(&[row]);
            let line = table.lines().nth(2).expect("a row");
            assert!(real.lines().any(|real| real == line), "{line:?}");
        }
    }
}
