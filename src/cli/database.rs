//! `kinfolk database`: Asterisk's words and texts, answered by a node.
//!
//! Asterisk's own texts go to stdout, also when they say no; what the node adds to them goes to stderr.

use std::io::Write;

use clap::{Args, CommandFactory};
use serde::Deserialize;

use super::client::{Answer, Client, segment, segments};
use super::texts::{self, Entry};
use super::words::{self, Options, Refusal, Verb};
use super::{Cli, Exit, Failure, NodeArgs, Outcome, complain};
use crate::core::family::Mode;
use crate::core::path::{Family, Path, PathError};

const WORDS: &str = "\
Words:
  put <family> <key> <value>       write an entry
  get <family> <key>               read one
  del <family> <key>               delete one
  deltree <family> [keytree]       delete a family, or a subtree of it
  show [family [keytree]]          list everything, a family, or a subtree of it
  showkey <keytree>                list the entries of any family that have this key
  put shared <family> <type>       share a family: 'global', one key space for all servers,
                                   or 'unique', one copy per server
  del shared <family>              stop sharing it; its entries stay as local ones

Examples:
  kinfolk database put CF 1001 1002
  kinfolk database put limits low -5         (a value may begin with '-')
  kinfolk database show CF --json";

#[derive(Debug, Args)]
#[command(after_help = WORDS)]
pub struct DatabaseArgs {
    /// Print the node's answer as JSON
    #[arg(long)]
    json: bool,
    /// What to do; see below
    #[arg(value_name = "WORD", trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

#[derive(Deserialize)]
struct Tree {
    entries: Vec<Entry>,
}

#[derive(Deserialize)]
struct Got {
    value: String,
}

#[derive(Deserialize)]
struct Removed {
    removed: u64,
}

pub fn run(args: &DatabaseArgs, node: &NodeArgs, out: &mut dyn Write) -> Outcome {
    let read = words::split_options(&args.words).and_then(|(words, options)| {
        let wants_help = options.help || words.is_empty();
        let verb = if wants_help { None } else { Some(words::verb(&words)?) };
        Ok((verb, options))
    });
    let (verb, options) = match read {
        Ok(read) => read,
        Err(refusal) => return refuse(&refusal, out),
    };
    let Some(verb) = verb else {
        let exit = if options.help { Exit::Done } else { Exit::Usage };
        help(out)?;
        return Ok(exit);
    };
    let Options { json, node: url, token_file, .. } = options;
    let mut node = node.clone();
    node.node = url.unwrap_or(node.node);
    node.token_file = token_file.or(node.token_file);
    let ask = Ask { client: Client::new(&node)?, json: json || args.json };
    ask.run(&verb, out)
}

fn refuse(refusal: &Refusal, out: &mut dyn Write) -> Outcome {
    match refusal {
        Refusal::Usage(usage) => out.write_all(usage.as_bytes())?,
        Refusal::UnknownMode(error) => writeln!(out, "{error}")?,
        Refusal::NoSuchCommand(words) => {
            complain(&format!("there is no command 'database {words}': see kinfolk database --help"));
        }
        Refusal::Incomplete(option) => complain(&format!("write {option}")),
    }
    Ok(Exit::Usage)
}

fn help(out: &mut dyn Write) -> Result<(), Failure> {
    let mut command = Cli::command();
    // The parents' names and options are handed down only by a build.
    command.build();
    match command.find_subcommand_mut("database") {
        Some(database) => write!(out, "{}", database.render_help())?,
        None => writeln!(out, "{WORDS}")?,
    }
    Ok(())
}

/// A refusal that needs no node to be told: the node would say the same.
fn malformed(text: &str, error: &PathError, out: &mut dyn Write) -> Outcome {
    if !text.is_empty() {
        writeln!(out, "{text}")?;
    }
    complain(&error.to_string());
    Ok(Exit::No)
}

struct Ask {
    client: Client,
    json: bool,
}

impl Ask {
    fn run(&self, verb: &Verb, out: &mut dyn Write) -> Outcome {
        match verb {
            Verb::Put { family, key, value } => self.put(family, key, value, out),
            Verb::Get { family, key } => self.get(family, key, out),
            Verb::Del { family, key } => self.del(family, key, out),
            Verb::Deltree { family, keytree } => self.deltree(family, keytree.as_deref(), out),
            Verb::Show { family, keytree } => match tree(family.as_deref(), keytree.as_deref()) {
                Ok(url) => self.table(&url, out),
                Err(error) => malformed("", &error, out),
            },
            Verb::Showkey { keytree } => match Family::new(keytree) {
                Ok(_) => self.table(&format!("/v1/keys/{}", segments(keytree)), out),
                Err(error) => malformed("", &error, out),
            },
            Verb::PutShared { family, mode } => self.share(family, *mode, out),
            Verb::DelShared { family } => self.unshare(family, out),
        }
    }

    fn put(&self, family: &str, key: &str, value: &str, out: &mut dyn Write) -> Outcome {
        const FAILED: &str = "Failed to update entry";
        let url = match entry(family, key) {
            Ok(url) => url,
            Err(error) => return malformed(FAILED, &error, out),
        };
        let answer = self.client.put(&url, "text/plain; charset=utf-8", value.as_bytes())?;
        self.say(&answer, out, |answer, out| {
            if answer.ok() {
                return Ok(writeln!(out, "Updated database successfully")?);
            }
            explain(FAILED, answer, out)
        })
    }

    fn get(&self, family: &str, key: &str, out: &mut dyn Write) -> Outcome {
        const MISS: &str = "Database entry not found.";
        let url = match entry(family, key) {
            Ok(url) => url,
            Err(error) => return malformed(MISS, &error, out),
        };
        let answer = self.client.get(&url)?;
        self.say(&answer, out, |answer, out| match answer.status {
            _ if answer.ok() => Ok(writeln!(out, "Value: {}", self.parse::<Got>(answer)?.value)?),
            404 => Ok(writeln!(out, "{MISS}")?),
            _ => explain("", answer, out),
        })
    }

    fn del(&self, family: &str, key: &str, out: &mut dyn Write) -> Outcome {
        const MISS: &str = "Database entry does not exist.";
        let url = match entry(family, key) {
            Ok(url) => url,
            Err(error) => return malformed(MISS, &error, out),
        };
        let answer = self.client.delete(&url)?;
        self.say(&answer, out, |answer, out| match answer.status {
            _ if answer.ok() => Ok(writeln!(out, "Database entry removed.")?),
            404 => Ok(writeln!(out, "{MISS}")?),
            _ => explain("", answer, out),
        })
    }

    fn deltree(&self, family: &str, keytree: Option<&str>, out: &mut dyn Write) -> Outcome {
        const MISS: &str = "Database entries do not exist.";
        let url = match tree(Some(family), keytree) {
            Ok(url) => url,
            Err(error) => return malformed(MISS, &error, out),
        };
        let answer = self.client.delete(&url)?;
        self.say(&answer, out, |answer, out| match answer.status {
            _ if answer.ok() => {
                let removed = self.parse::<Removed>(answer)?.removed;
                Ok(writeln!(out, "{removed} database entries removed.")?)
            }
            404 => Ok(writeln!(out, "{MISS}")?),
            _ => explain("", answer, out),
        })
    }

    fn table(&self, url: &str, out: &mut dyn Write) -> Outcome {
        let answer = self.client.get(url)?;
        self.say(&answer, out, |answer, out| {
            if answer.ok() {
                return Ok(texts::show(&self.parse::<Tree>(answer)?.entries, out)?);
            }
            explain("", answer, out)
        })
    }

    fn share(&self, family: &str, mode: Mode, out: &mut dyn Write) -> Outcome {
        let failed = format!("Could not share family '{family}' (is it already shared?)");
        if let Err(error) = Family::new(family) {
            return malformed(&failed, &error, out);
        }
        let body = format!(r#"{{"mode":"{mode}"}}"#);
        let url = format!("/v1/shared/{}", segment(family));
        let answer = self.client.put(&url, "application/json", body.as_bytes())?;
        self.say(&answer, out, |answer, out| {
            if answer.ok() {
                return Ok(writeln!(out, "Shared database family '{family}'.")?);
            }
            explain(&failed, answer, out)
        })
    }

    fn unshare(&self, family: &str, out: &mut dyn Write) -> Outcome {
        let miss = format!("Shared family '{family}' does not exist.");
        if let Err(error) = Family::new(family) {
            return malformed(&miss, &error, out);
        }
        let answer = self.client.delete(&format!("/v1/shared/{}", segment(family)))?;
        self.say(&answer, out, |answer, out| match answer.status {
            _ if answer.ok() => Ok(writeln!(out, "Shared database family '{family}' removed.")?),
            404 => Ok(writeln!(out, "{miss}")?),
            _ => explain("", answer, out),
        })
    }

    /// Prints the answer as JSON, or as `text` says it; the exit code is the answer's either way.
    fn say(
        &self,
        answer: &Answer,
        out: &mut dyn Write,
        text: impl FnOnce(&Answer, &mut dyn Write) -> Result<(), Failure>,
    ) -> Outcome {
        if self.json {
            writeln!(out, "{}", compact(answer).map_err(|error| self.client.nonsense(answer, error))?)?;
        } else {
            text(answer, out)?;
        }
        Ok(answer.exit())
    }

    fn parse<'a, T: Deserialize<'a>>(&self, answer: &'a Answer) -> Result<T, Failure> {
        serde_json::from_str(&answer.body).map_err(|error| self.client.nonsense(answer, error))
    }
}

/// Asterisk's text, if it has one for this, then what the node says of it.
fn explain(text: &str, answer: &Answer, out: &mut dyn Write) -> Result<(), Failure> {
    if !text.is_empty() {
        writeln!(out, "{text}")?;
        out.flush()?;
    }
    complain(&answer.detail());
    Ok(())
}

/// The answer on one line: as it came if it is one, so that the order of its fields stays.
pub fn compact(answer: &Answer) -> Result<String, serde_json::Error> {
    let value: serde_json::Value = serde_json::from_str(&answer.body)?;
    let body = answer.body.trim();
    Ok(if body.contains(['\n', '\r']) { value.to_string() } else { body.to_string() })
}

fn entry(family: &str, key: &str) -> Result<String, PathError> {
    Path::of(family, key)?;
    Ok(format!("/v1/db/{}/{}", segment(family), segments(key)))
}

fn tree(family: Option<&str>, keytree: Option<&str>) -> Result<String, PathError> {
    let mut url = "/v1/tree".to_string();
    if let Some(family) = family {
        Family::new(family)?;
        url = format!("{url}/{}", segment(family));
    }
    if let Some(keytree) = keytree {
        Family::new(keytree)?;
        url = format!("{url}/{}", segments(keytree));
    }
    Ok(url)
}
