//! Reads what `database show` prints, of a stock Asterisk, a patched one or Kinfolk itself. Pure: bytes in,
//! rows and faults out.
//!
//! A row is a key padded to 50 bytes, ": ", a value padded to 25, and on a patched Asterisk a blank and
//! "(G)", "(U)" or nothing. The format loses blanks at the end of short values and cannot show line breaks;
//! what cannot be read for certain is a fault, never a guess.

use std::fmt;

use super::texts::{HEADER, KEY_WIDTH_BYTES, RULE, VALUE_WIDTH_BYTES};
use crate::core::family::{Mode, NEVER_SHARED_GLOBALLY};
use crate::core::path::{BOOKS_FAMILY, MARKS_FAMILY, Path, PathError, Value, utf8};

/// One row that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Counted from 1.
    pub line: usize,
    pub path: Path,
    pub value: Value,
    pub shared: Option<Mode>,
}

/// One line that was not, or a row that cannot be trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub line: usize,
    pub reason: String,
}

/// A whole text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    pub rows: Vec<Row>,
    pub faults: Vec<Fault>,
    /// Rows whose value was padded: blanks at its end, if it had any, cannot be told from padding.
    pub padded: usize,
    /// "N results found.", if the text says so.
    pub announced: Option<usize>,
}

/// Why a row is not imported, though it can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Skip {
    Mark,
    UnderEid,
    NeverShared,
    Books,
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Skip::Mark => "marks of shared families: this node has its own",
            Skip::UnderEid => "rows under the EID of another server: only that server writes them",
            Skip::NeverShared => "rows of families that belong to one server only",
            Skip::Books => "rows of Kinfolk's own books",
        })
    }
}

/// Whether a row of this path must stay out, and why.
pub fn skip(path: &Path) -> Option<Skip> {
    let top = path.top();
    if top == MARKS_FAMILY {
        Some(Skip::Mark)
    } else if top == BOOKS_FAMILY {
        Some(Skip::Books)
    } else if path.under_eid().is_some() {
        Some(Skip::UnderEid)
    } else if NEVER_SHARED_GLOBALLY.contains(&top) {
        Some(Skip::NeverShared)
    } else {
        None
    }
}

/// What a line is, by its shape alone.
enum Line<'a> {
    Blank,
    Header,
    Footer(usize),
    Row { key: &'a [u8], rest: &'a [u8] },
    Other,
}

pub fn parse(text: &[u8]) -> Parsed {
    let crlf = text.ends_with(b"\r\n");
    let lines: Vec<&[u8]> = text
        .split(|&b| b == b'\n')
        .map(|line| if crlf { line.strip_suffix(b"\r").unwrap_or(line) } else { line })
        .collect();
    let column = has_shared_column(&lines);
    let mut parsed = Parsed::default();
    // The row that a line break in its value would continue, unless it is known to be whole.
    let mut open: Option<usize> = None;
    for (index, line) in lines.iter().enumerate() {
        let number = index + 1;
        match classify(line) {
            Line::Blank | Line::Header => {}
            Line::Footer(count) => parsed.announced = Some(count),
            Line::Row { key, rest } => {
                open = None;
                match read_row(number, key, rest, column) {
                    Ok((row, padded)) => {
                        parsed.padded += usize::from(padded);
                        parsed.rows.push(row);
                        open = Some(number);
                    }
                    Err(reason) => parsed.faults.push(Fault { line: number, reason }),
                }
            }
            Line::Other => {
                if open.take().is_some()
                    && let Some(row) = parsed.rows.pop()
                {
                    let reason = format!(
                        "{}: line {number} seems to continue its value, which this format cannot show for certain: \
                         write it by hand",
                        row.path
                    );
                    parsed.faults.push(Fault { line: row.line, reason });
                }
                let reason = "neither a row nor a header: no path with \": \" at or after column 50".to_string();
                parsed.faults.push(Fault { line: number, reason });
            }
        }
    }
    parsed
}

fn classify(line: &[u8]) -> Line<'_> {
    let text = line.trim_ascii();
    if text.is_empty() {
        return Line::Blank;
    }
    if text == HEADER.as_bytes() || text == RULE.as_bytes() {
        return Line::Header;
    }
    if let Some(count) = footer(text) {
        return Line::Footer(count);
    }
    if !line.starts_with(b"/") {
        return Line::Other;
    }
    match separator(line) {
        Some(at) => Line::Row { key: &line[..at], rest: line.get(at + 2..).unwrap_or_default() },
        None => Line::Other,
    }
}

/// Where the first ": " at or after column 50 stands. At the end of a line an editor may have cut its blank.
fn separator(line: &[u8]) -> Option<usize> {
    (KEY_WIDTH_BYTES..line.len())
        .find(|&at| line[at] == b':' && (line.get(at + 1) == Some(&b' ') || at + 1 == line.len()))
}

fn footer(text: &[u8]) -> Option<usize> {
    std::str::from_utf8(text).ok()?.strip_suffix(" results found.")?.parse().ok()
}

/// Whether rows end with the Shared column. The header says so; without one the rows give it away: a value
/// that was padded to exactly 25 bytes and nothing after it is a stock Asterisk's.
fn has_shared_column(lines: &[&[u8]]) -> bool {
    let mut seems_shared = false;
    for line in lines {
        match classify(line) {
            Line::Header => return true,
            Line::Row { rest, .. } if rest.len() == VALUE_WIDTH_BYTES && rest.ends_with(b" ") => return false,
            Line::Row { rest, .. } if rest.len() > VALUE_WIDTH_BYTES => {
                seems_shared |= rest.ends_with(b" ") || rest.ends_with(b" (G)") || rest.ends_with(b" (U)");
            }
            _ => {}
        }
    }
    seems_shared
}

/// The row, and whether its value was padded.
fn read_row(line: usize, key: &[u8], rest: &[u8], column: bool) -> Result<(Row, bool), String> {
    let (value, shared) = if column { split_shared(rest) } else { (rest, None) };
    let padded = value.len() <= VALUE_WIDTH_BYTES && value.last().is_none_or(|&b| b == b' ');
    let value = if value.len() <= VALUE_WIDTH_BYTES { trim_blanks(value) } else { value };
    let key = if key.len() == KEY_WIDTH_BYTES { trim_blanks(key) } else { key };
    let read = || -> Result<Row, PathError> {
        Ok(Row { line, path: Path::new(utf8(key)?)?, value: Value::new(utf8(value)?)?, shared })
    };
    let row = read().map_err(|error| format!("{}: {error}", String::from_utf8_lossy(key)))?;
    Ok((row, padded))
}

/// The value field and the Shared column. A value shorter than its field is one whose blanks were cut: then
/// there is no column either.
fn split_shared(rest: &[u8]) -> (&[u8], Option<Mode>) {
    for (mark, mode) in [(&b" (G)"[..], Some(Mode::Global)), (b" (U)", Some(Mode::Unique)), (b" ", None)] {
        if let Some(value) = rest.strip_suffix(mark).filter(|value| value.len() >= VALUE_WIDTH_BYTES) {
            return (value, mode);
        }
    }
    (rest, None)
}

fn trim_blanks(text: &[u8]) -> &[u8] {
    let end = text.iter().rposition(|&b| b != b' ').map_or(0, |last| last + 1);
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::texts::{Entry, show};

    /// Printed by a real Asterisk.
    const REAL: &str = include_str!("../../tests/fixtures/database-show.txt");

    fn row(line: usize, path: &str, value: &str, shared: Option<Mode>) -> Row {
        let path = Path::new(path).expect("a path");
        Row { line, path, value: Value::new(value).expect("a value"), shared }
    }

    fn pairs(parsed: &Parsed) -> Vec<(&str, &str)> {
        parsed.rows.iter().map(|row| (row.path.as_str(), row.value.as_str())).collect()
    }

    /// The same as a stock Asterisk prints it: neither header nor Shared column.
    fn stock(text: &str) -> String {
        let cut = |line: &str| match line.rsplit_once(' ') {
            Some((row, "" | "(G)" | "(U)")) if line.starts_with('/') => format!("{row}\n"),
            _ => format!("{line}\n"),
        };
        text.lines().skip(2).map(cut).collect()
    }

    #[test]
    fn every_row_that_a_real_asterisk_printed_is_read() {
        let parsed = parse(REAL.as_bytes());
        assert_eq!(parsed.rows.len(), 2_611);
        assert_eq!(parsed.announced, Some(2_611));
        assert_eq!(parsed.faults, []);
        assert_eq!(parsed.rows.iter().filter(|row| row.shared == Some(Mode::Global)).count(), 159);
        assert_eq!(parsed.rows.iter().filter(|row| row.shared == Some(Mode::Unique)).count(), 26);
        for expected in [
            row(3, "/02:00:00:00:00:02/uni/a", "b", None),
            row(6, "/AMPUSER/1001/busy_cid", "", None),
            row(11, "/AMPUSER/1001/cidname", "Łukasz Silva", None),
        ] {
            assert_eq!(parsed.rows[expected.line - 3], expected);
        }
        let long = format!("/longkey/{}", "k".repeat(200));
        let value = |path: &str| parsed.rows.iter().find(|row| row.path.as_str() == path).map(|row| row.value.as_str());
        assert_eq!(value(&long), Some("v"), "a key longer than its column");
        assert!(
            value("/registrar/contact/1001;@d41d8cd98f00b204e9800998ecf8427e")
                .is_some_and(|json| json.starts_with('{') && json.ends_with('}'))
        );
        assert_eq!(value("/hotdesk/desk/06-027"), Some("1028: since 2026-11-22 08:55"), "a ': ' in a value");
    }

    #[test]
    fn what_must_stay_out_is_known_by_its_family() {
        let parsed = parse(REAL.as_bytes());
        let count = |skipped| parsed.rows.iter().filter(|row| skip(&row.path) == Some(skipped)).count();
        assert_eq!(count(Skip::Mark), 9);
        assert_eq!(count(Skip::UnderEid), 1);
        assert_eq!(count(Skip::NeverShared), 3);
        assert_eq!(count(Skip::Books), 0);
        assert_eq!(skip(&Path::new("/registrarx/a").expect("a path")), None);
    }

    #[test]
    fn our_own_table_of_all_rows_is_the_real_one_and_is_read_back() {
        let parsed = parse(REAL.as_bytes());
        let entries: Vec<Entry> = parsed
            .rows
            .iter()
            .map(|row| Entry { path: row.path.to_string(), value: row.value.to_string(), shared: row.shared })
            .collect();
        let mut printed = Vec::new();
        show(&entries, &mut printed).expect("memory");
        assert_eq!(String::from_utf8_lossy(&printed), REAL, "byte for byte");
        assert_eq!(parse(&printed), parsed);
    }

    #[test]
    fn a_stock_asterisk_prints_the_same_without_header_and_column() {
        let (patched, stock) = (parse(REAL.as_bytes()), parse(stock(REAL).as_bytes()));
        assert_eq!(stock.faults, []);
        assert_eq!(pairs(&stock), pairs(&patched));
        assert!(stock.rows.iter().all(|row| row.shared.is_none()));
    }

    #[test]
    fn header_and_footer_may_be_missing_and_lines_may_end_as_on_windows() {
        let rows: String = REAL.lines().filter(|line| line.starts_with('/')).map(|line| format!("{line}\n")).collect();
        let headless = parse(rows.as_bytes());
        assert_eq!(pairs(&headless), pairs(&parse(REAL.as_bytes())));
        assert_eq!(headless.announced, None);
        let windows = parse(REAL.replace('\n', "\r\n").as_bytes());
        assert_eq!(windows, parse(REAL.as_bytes()));
    }

    #[test]
    fn blanks_that_an_editor_cut_are_no_fault() {
        let cut: String = REAL.lines().map(|line| format!("{}\n", line.trim_end())).collect();
        let parsed = parse(cut.as_bytes());
        assert_eq!(parsed.faults, []);
        assert_eq!(pairs(&parsed), pairs(&parse(REAL.as_bytes())));
    }

    #[test]
    fn blanks_at_the_end_of_a_short_value_are_lost_and_counted_and_those_of_a_long_one_are_kept() {
        let key = format!("{:50}: ", "/foo/k");
        let long = "x".repeat(30);
        let text = format!("{HEADER}\n{key}{:25} \n{key}{long}   \n{key}{:25} (G)\n", "a  ", "y".repeat(25));
        let parsed = parse(text.as_bytes());
        let values: Vec<&str> = parsed.rows.iter().map(|row| row.value.as_str()).collect();
        assert_eq!(values, ["a", &format!("{long}  "), &"y".repeat(25)]);
        assert_eq!(parsed.padded, 1);
    }

    #[test]
    fn a_value_with_a_line_break_is_reported_and_not_cut_short() {
        let key = |name: &str| format!("{name:50}: ");
        let text = format!("{}one\ntwo                   \n{}x\n", key("/foo/a"), key("/foo/b"));
        let parsed = parse(text.as_bytes());
        assert_eq!(pairs(&parsed), [("/foo/b", "x")]);
        assert_eq!(parsed.faults.iter().map(|fault| fault.line).collect::<Vec<_>>(), [1, 2]);
        assert!(parsed.faults[0].reason.contains("/foo/a") && parsed.faults[0].reason.contains("line 2"));
    }

    #[test]
    fn what_is_no_row_is_a_fault_with_its_line_and_reason() {
        let text = format!("hello\n/foo/k : v\n{:50}: v\n{:50}: v\n", "/foo//k", "/foo");
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(format!("{:50}: ", "/foo/k").as_bytes());
        bytes.extend_from_slice(b"\xff\n");
        let parsed = parse(&bytes);
        assert_eq!(parsed.rows, []);
        let reasons: Vec<(usize, &str)> =
            parsed.faults.iter().map(|fault| (fault.line, fault.reason.as_str())).collect();
        assert!(
            matches!(reasons[..], [(1, _), (2, _), (3, a), (4, b), (5, c)]
            if a.contains("segment 2 is empty") && b.contains("a path starts with") && c.contains("UTF-8")),
            "{reasons:?}"
        );
        assert_eq!(parse(b""), Parsed::default());
    }
}
