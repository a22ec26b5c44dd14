//! `kinfolk import`: reads an export or a `database show` text, sends it in batches, and reports what became
//! of every line.
//!
//! Importing an export twice is safe: its stamps decide. Rows of a `database show` text bear no stamps and
//! are new writes.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::path::{Path as FilePath, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Deserializer, Serialize};

use super::client::Client;
use super::{Exit, Failure, NodeArgs, Outcome, show_text};
use crate::core::clock::Stamp;
use crate::core::eid::Eid;
use crate::core::path::{Path, Value};

use report::Report;

mod report;

const BATCH_MAX_LINES: usize = 500;
/// Well below what a node takes at least (1 MiB), also with one line of the largest size on top.
const BATCH_MAX_BYTES: usize = 512 * 1024;
/// No good line is longer: the largest value with every byte escaped, and the largest path.
const LINE_MAX_BYTES: u64 = 512 * 1024;

#[derive(Debug, Args)]
#[command(after_help = "\
Takes what `kinfolk export` prints (JSON lines with stamps, merged by them), or what
`asterisk -rx \"database show\"` prints (with or without header, footer and Shared column; plain rows
become new writes). Marks, rows under another server's EID and families that belong to one server only
(registrar, IAX, SIP, pbx, dundi) are skipped in the latter, and the report says so.

Examples:
  kinfolk import --dry-run astdb.txt
  asterisk -rx 'database show' | kinfolk import -
  kinfolk import backup.jsonl")]
pub struct ImportArgs {
    /// The file to read; - is stdin
    file: PathBuf,
    /// Write everything anew, with stamps of now, instead of merging by the stamps of the export
    #[arg(long)]
    as_new: bool,
    /// Only say what would be done; asks no node
    #[arg(long)]
    dry_run: bool,
}

/// One line of an export. Null is a tombstone, so a missing value must not pass for one.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ExportLine {
    #[serde(default)]
    owner: Option<Eid>,
    path: Path,
    #[serde(deserialize_with = "Option::deserialize")]
    value: Option<Value>,
    #[serde(default, deserialize_with = "stamp_text", skip_serializing_if = "Option::is_none")]
    stamp: Option<String>,
}

/// Checked here, passed on as it came.
fn stamp_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    if let Some(text) = &text {
        text.parse::<Stamp>().map_err(serde::de::Error::custom)?;
    }
    Ok(text)
}

/// The node's answer to a batch.
#[derive(Debug, Default, Deserialize)]
struct BatchAnswer {
    won: u64,
    lost: u64,
    same: u64,
    written: u64,
    #[serde(default)]
    refused: Vec<RefusedLine>,
}

#[derive(Debug, Deserialize)]
struct RefusedLine {
    /// Counted from 1 within the batch.
    line: usize,
    reason: String,
}

pub fn run(args: &ImportArgs, node: &NodeArgs, out: &mut dyn Write) -> Outcome {
    let client = if args.dry_run { None } else { Some(Client::new(node)?) };
    let (mut input, bytes) = open(&args.file)?;
    let mut import = Import {
        sender: Sender { client, as_new: args.as_new, lines: Vec::new(), body: Vec::new() },
        report: Report::new(&args.file, args.dry_run),
        bar: progress_bar(bytes),
    };
    let sent = import.read(&mut input).and_then(|()| import.flush());
    import.bar.finish_and_clear();
    if sent.is_err() {
        import.report.broken_off = true;
    }
    import.report.print(out)?;
    out.flush()?;
    sent?;
    Ok(if import.report.all_taken() { Exit::Done } else { Exit::No })
}

type Input = Box<dyn BufRead>;

/// The input, and its size if that is known.
fn open(file: &FilePath) -> Result<(Input, Option<u64>), Failure> {
    if file.as_os_str() == "-" {
        return Ok((Box::new(BufReader::new(io::stdin())), None));
    }
    let opened = File::open(file).and_then(|opened| Ok((opened.metadata()?, opened)));
    let (metadata, opened) = opened.map_err(|error| unreadable(file, &error))?;
    Ok((Box::new(BufReader::new(opened)), metadata.is_file().then_some(metadata.len())))
}

fn unreadable(file: &FilePath, error: &io::Error) -> Failure {
    Failure::new(Exit::Usage, format_args!("cannot read {}: {error}", file.display()))
}

fn progress_bar(bytes: Option<u64>) -> ProgressBar {
    let target = if io::stderr().is_terminal() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let template = match bytes {
        Some(_) => "{bar:30} {percent:>3} % of {total_bytes}, {eta} left",
        None => "{spinner} {bytes} read",
    };
    let bar = ProgressBar::with_draw_target(bytes, target);
    bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

struct Import {
    sender: Sender,
    report: Report,
    bar: ProgressBar,
}

impl Import {
    fn read(&mut self, input: &mut Input) -> Result<(), Failure> {
        let file = self.report.file.clone();
        let first = first_byte(input).map_err(|error| unreadable(&file, &error))?;
        if first == Some(b'{') {
            self.report.kind = "export";
            self.read_export(input)
        } else {
            self.report.kind = "'database show' text";
            let mut text = Vec::new();
            input.read_to_end(&mut text).map_err(|error| unreadable(&file, &error))?;
            self.read_show_text(&text)
        }
    }

    fn read_export(&mut self, input: &mut Input) -> Result<(), Failure> {
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let read = (&mut *input).take(LINE_MAX_BYTES).read_until(b'\n', &mut line);
            let read = read.map_err(|error| unreadable(&self.report.file, &error))?;
            if read == 0 {
                break;
            }
            self.bar.inc(read as u64);
            if line.len() as u64 == LINE_MAX_BYTES && !line.ends_with(b"\n") {
                self.report.fault(number, format!("longer than {LINE_MAX_BYTES} bytes: this is no export"));
                break;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            self.report.lines += 1;
            match serde_json::from_slice::<ExportLine>(&line) {
                Ok(line) => self.push(number, &line)?,
                Err(error) => self.report.fault(number, format!("not a line of an export: {error}")),
            }
        }
        Ok(())
    }

    fn read_show_text(&mut self, text: &[u8]) -> Result<(), Failure> {
        let parsed = show_text::parse(text);
        let rows = parsed.rows.len() as u64;
        self.report.lines = rows + parsed.faults.len() as u64;
        self.report.padded = parsed.padded;
        if parsed.announced.is_some_and(|announced| announced != parsed.rows.len()) {
            self.report.announced = parsed.announced;
        }
        for fault in parsed.faults {
            self.report.fault(fault.line, fault.reason);
        }
        // Rows are counted here, not bytes: the text has been read already.
        let bytes_per_row = (text.len() as u64).checked_div(rows).unwrap_or_default();
        for row in parsed.rows {
            self.bar.inc(bytes_per_row);
            match show_text::skip(&row.path) {
                Some(skip) => self.report.skip(skip, row.path, &row.value),
                None => {
                    let line = ExportLine { owner: None, path: row.path, value: Some(row.value), stamp: None };
                    self.push(row.line, &line)?;
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, number: usize, line: &ExportLine) -> Result<(), Failure> {
        let json = serde_json::to_vec(line)
            .map_err(|error| Failure::new(Exit::Failed, format_args!("line {number} cannot be sent: {error}")))?;
        if !self.sender.has_room_for(json.len()) {
            self.flush()?;
        }
        let new = self.sender.as_new || line.stamp.is_none();
        self.report.planned(new, line.value.is_none());
        self.sender.lines.push(number);
        self.sender.body.extend_from_slice(&json);
        self.sender.body.push(b'\n');
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        let lines = std::mem::take(&mut self.sender.lines);
        let body = std::mem::take(&mut self.sender.body);
        if lines.is_empty() {
            return Ok(());
        }
        let Some(answer) = self.sender.send(&body)? else {
            return Ok(());
        };
        self.report.count(&answer);
        for refused in answer.refused {
            let number = refused.line.checked_sub(1).and_then(|index| lines.get(index)).copied();
            self.report.refused(number.unwrap_or_default(), refused.reason);
        }
        Ok(())
    }
}

struct Sender {
    /// None in a dry run.
    client: Option<Client>,
    as_new: bool,
    /// The input's line numbers of the batch.
    lines: Vec<usize>,
    body: Vec<u8>,
}

impl Sender {
    fn has_room_for(&self, bytes: usize) -> bool {
        self.lines.len() < BATCH_MAX_LINES && self.body.len() + bytes < BATCH_MAX_BYTES
    }

    /// None in a dry run.
    fn send(&self, body: &[u8]) -> Result<Option<BatchAnswer>, Failure> {
        let Some(client) = &self.client else {
            return Ok(None);
        };
        let path = if self.as_new { "/v1/import?as_new=true" } else { "/v1/import" };
        let answer = client.post(path, "application/x-ndjson", body)?;
        if !answer.ok() {
            return Err(Failure::new(answer.exit(), answer.detail()));
        }
        serde_json::from_str(&answer.body).map(Some).map_err(|error| client.nonsense(&answer, error))
    }
}

/// The first byte that is not white space; what is before it stays unread as far as it is in one buffer.
fn first_byte(input: &mut Input) -> io::Result<Option<u8>> {
    Ok(input.fill_buf()?.iter().copied().find(|byte| !byte.is_ascii_whitespace()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: &str = "1790000000000.3@02:00:00:00:00:01#00000000000000ab";

    fn read(line: &str) -> Result<ExportLine, String> {
        serde_json::from_str(line).map_err(|error| error.to_string())
    }

    #[test]
    fn a_line_of_an_export_is_passed_on_as_it_came() {
        for line in [
            format!(r#"{{"owner":null,"path":"/foo/k","value":"v","stamp":"{STAMP}"}}"#),
            format!(r#"{{"owner":"02:00:00:00:00:01","path":"/foo/k","value":null,"stamp":"{STAMP}"}}"#),
            r#"{"owner":null,"path":"/foo/k","value":""}"#.to_string(),
        ] {
            assert_eq!(serde_json::to_string(&read(&line).expect("good")).expect("JSON"), line);
        }
    }

    #[test]
    fn a_missing_value_is_not_taken_for_a_deletion() {
        let error = read(r#"{"path":"/foo/k"}"#).expect_err("no value");
        assert!(error.contains("missing field `value`"), "{error}");
    }

    #[test]
    fn bad_lines_are_refused_with_the_reason() {
        for (line, part) in [
            (r#"{"path":"/foo","value":"v"}"#, "/family/key"),
            (r#"{"path":"/foo/k","value":"v","stamp":"1"}"#, "'1' is not a stamp"),
            (r#"{"path":"/foo/k","value":"v","seq":1}"#, "unknown field `seq`"),
            (r#"{"path":"/foo/k","value":"v","owner":"x"}"#, "'x' is not an EID"),
            (r#"{"path":"/foo/k","#, "EOF"),
        ] {
            let error = read(line).expect_err(line);
            assert!(error.contains(part), "{error}");
        }
    }
}
