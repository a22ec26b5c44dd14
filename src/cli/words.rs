//! The words after `kinfolk database`, read as Asterisk's CLI reads them: the longest command wins, so that
//! `put shared foo global` shares a family and never writes a key of a family named "shared".

use std::path::PathBuf;

use super::texts;
use crate::core::family::{Mode, UnknownMode};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    Put { family: String, key: String, value: String },
    Get { family: String, key: String },
    Del { family: String, key: String },
    Deltree { family: String, keytree: Option<String> },
    Show { family: Option<String>, keytree: Option<String> },
    Showkey { keytree: String },
    PutShared { family: String, mode: Mode },
    DelShared { family: String },
}

/// Options that stand among or after the words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub json: bool,
    pub help: bool,
    pub node: Option<String>,
    pub token_file: Option<PathBuf>,
}

/// Why the words are no command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Wrong number of words: Asterisk's usage text.
    Usage(&'static str),
    UnknownMode(UnknownMode),
    NoSuchCommand(String),
    /// An option without its value.
    Incomplete(&'static str),
}

/// Takes the options out of the words. The value of `put` is taken as it stands, whatever it looks like,
/// and so is everything after `--` (which is itself a value only where nothing follows it).
pub fn split_options(args: &[String]) -> Result<(Vec<&str>, Options), Refusal> {
    let (mut words, mut options) = (Vec::new(), Options::default());
    let mut args = args.iter().map(String::as_str).peekable();
    while let Some(arg) = args.next() {
        let ends_options = arg == "--" && args.peek().is_some();
        let is_value = words.len() == 3 && words[0] == "put" && words[1] != "shared" && !ends_options;
        let (name, inline) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value.to_string())),
            None => (arg, None),
        };
        match name {
            _ if is_value => words.push(arg),
            "--" if inline.is_none() => words.extend(args.by_ref()),
            "--json" if inline.is_none() => options.json = true,
            "--help" | "-h" if inline.is_none() => options.help = true,
            "--node" => {
                let value = inline.or_else(|| args.next().map(str::to_string));
                options.node = Some(value.ok_or(Refusal::Incomplete("--node URL"))?);
            }
            "--token-file" => {
                let value = inline.or_else(|| args.next().map(str::to_string));
                options.token_file = Some(value.ok_or(Refusal::Incomplete("--token-file FILE"))?.into());
            }
            _ => words.push(arg),
        }
    }
    Ok((words, options))
}

/// The command that the words say.
pub fn verb(words: &[&str]) -> Result<Verb, Refusal> {
    let text = |word: &&str| (*word).to_string();
    match words {
        ["put", "shared", rest @ ..] => match rest {
            [family, mode] => {
                Ok(Verb::PutShared { family: text(family), mode: mode.parse().map_err(Refusal::UnknownMode)? })
            }
            _ => Err(Refusal::Usage(texts::PUT_SHARED_USAGE)),
        },
        ["del", "shared", rest @ ..] => match rest {
            [family] => Ok(Verb::DelShared { family: text(family) }),
            _ => Err(Refusal::Usage(texts::DEL_SHARED_USAGE)),
        },
        ["put", family, key, value] => Ok(Verb::Put { family: text(family), key: text(key), value: text(value) }),
        ["put", ..] => Err(Refusal::Usage(texts::PUT_USAGE)),
        ["get", family, key] => Ok(Verb::Get { family: text(family), key: text(key) }),
        ["get", ..] => Err(Refusal::Usage(texts::GET_USAGE)),
        ["del", family, key] => Ok(Verb::Del { family: text(family), key: text(key) }),
        ["del", ..] => Err(Refusal::Usage(texts::DEL_USAGE)),
        ["deltree", family] => Ok(Verb::Deltree { family: text(family), keytree: None }),
        ["deltree", family, keytree] => Ok(Verb::Deltree { family: text(family), keytree: Some(text(keytree)) }),
        ["deltree", ..] => Err(Refusal::Usage(texts::DELTREE_USAGE)),
        ["show", rest @ ..] if rest.len() <= 2 => {
            Ok(Verb::Show { family: rest.first().map(text), keytree: rest.get(1).map(text) })
        }
        ["show", ..] => Err(Refusal::Usage(texts::SHOW_USAGE)),
        ["showkey", keytree] => Ok(Verb::Showkey { keytree: text(keytree) }),
        ["showkey", ..] => Err(Refusal::Usage(texts::SHOWKEY_USAGE)),
        _ => Err(Refusal::NoSuchCommand(words.join(" "))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_string).collect()
    }

    fn read(line: &str) -> Result<(Verb, Options), Refusal> {
        let args = words(line);
        let (words, options) = split_options(&args)?;
        Ok((verb(&words)?, options))
    }

    #[test]
    fn the_longest_command_wins() {
        let shared = Verb::PutShared { family: "foo".to_string(), mode: Mode::Global };
        assert_eq!(verb(&["put", "shared", "foo", "global"]), Ok(shared));
        assert_eq!(verb(&["put", "shared", "foo"]), Err(Refusal::Usage(texts::PUT_SHARED_USAGE)));
        assert_eq!(verb(&["put", "shared", "a", "b", "c"]), Err(Refusal::Usage(texts::PUT_SHARED_USAGE)));
        assert_eq!(verb(&["del", "shared"]), Err(Refusal::Usage(texts::DEL_SHARED_USAGE)));
        assert_eq!(verb(&["del", "shared", "foo"]), Ok(Verb::DelShared { family: "foo".to_string() }));
    }

    #[test]
    fn wrong_word_counts_get_the_usage_of_their_command() {
        for (line, usage) in [
            ("put foo k1", texts::PUT_USAGE),
            ("put a b c d", texts::PUT_USAGE),
            ("get foo", texts::GET_USAGE),
            ("del foo", texts::DEL_USAGE),
            ("deltree", texts::DELTREE_USAGE),
            ("deltree a b c", texts::DELTREE_USAGE),
            ("show a b c", texts::SHOW_USAGE),
            ("showkey", texts::SHOWKEY_USAGE),
        ] {
            assert_eq!(read(line), Err(Refusal::Usage(usage)), "{line}");
        }
        assert_eq!(read("frobnicate a"), Err(Refusal::NoSuchCommand("frobnicate a".to_string())));
    }

    #[test]
    fn options_may_stand_anywhere_but_a_value_is_a_value() {
        let (_, options) = read("show --json foo --node=http://a:1 --token-file t").expect("good");
        assert_eq!(options.node.as_deref(), Some("http://a:1"));
        assert!(options.json && options.token_file == Some("t".into()));
        let (verb, options) = read("put foo k --json --json").expect("good");
        assert_eq!(verb, Verb::Put { family: "foo".to_string(), key: "k".to_string(), value: "--json".to_string() });
        assert!(options.json, "the second one is an option again");
        let (verb, options) = read("get -- foo --json").expect("good");
        assert_eq!(verb, Verb::Get { family: "foo".to_string(), key: "--json".to_string() });
        assert!(!options.json);
        let (verb, _) = read("put foo k -5").expect("good");
        assert_eq!(verb, Verb::Put { family: "foo".to_string(), key: "k".to_string(), value: "-5".to_string() });
        for (line, value) in [("put foo k -- --json", "--json"), ("put foo k --", "--"), ("put -- foo k --", "--")] {
            let (verb, options) = read(line).expect("good");
            assert_eq!(verb, Verb::Put { family: "foo".to_string(), key: "k".to_string(), value: value.to_string() });
            assert!(!options.json, "{line}");
        }
        assert_eq!(read("show --node"), Err(Refusal::Incomplete("--node URL")));
    }
}
