//! `kinfolk decommission` and `kinfolk quarantine`: who is not waited for any more, and what cannot be told from deleted.

use std::io::Write;

use clap::{Args, Subcommand};
use serde_json::json;

use super::client::{Answer, Client, segment, segments};
use super::database::compact;
use super::{Exit, Outcome, complain};
use crate::status::quarantine::{Doubtful, Quarantine};
use crate::status::utc;

#[derive(Debug, Args)]
#[command(after_help = "\
Deletions are remembered until every member has them. A member that is gone for good holds that up: ask any
other node to decommission it. If it comes back, what only it has from before goes into quarantine.")]
pub struct DecommissionArgs {
    /// The EID of the member that is gone, as `kinfolk status` prints it
    eid: String,
    /// Count it as a member again
    #[arg(long)]
    undo: bool,
}

#[derive(Debug, Subcommand)]
pub enum QuarantineCommand {
    /// Print what was set aside on this node
    List {
        /// Print the node's answer as JSON
        #[arg(long)]
        json: bool,
    },
    /// Write what was set aside anew, as a write of now: every server gets it
    Adopt(Chosen),
    /// Take what was set aside away for good
    Drop(Chosen),
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Chosen {
    /// The paths, as `kinfolk quarantine list` prints them
    #[arg(value_name = "PATH")]
    paths: Vec<String>,
    /// All that is in quarantine now
    #[arg(long)]
    all: bool,
}

pub fn decommission(args: &DecommissionArgs, client: &Client, out: &mut dyn Write) -> Outcome {
    let standing = if args.undo { "admitted" } else { "decommissioned" };
    let body = json!({ "standing": standing }).to_string();
    let answer = client.put(&format!("/v1/members/{}", segment(&args.eid)), "application/json", body.as_bytes())?;
    if answer.ok() {
        writeln!(out, "{} is {standing}.", args.eid)?;
    } else {
        complain(&answer.detail());
    }
    Ok(answer.exit())
}

pub fn quarantine(command: &QuarantineCommand, client: &Client, out: &mut dyn Write) -> Outcome {
    match command {
        QuarantineCommand::List { json } => list(*json, client, out),
        QuarantineCommand::Adopt(chosen) => {
            each(chosen, client, out, "adopted", |url| client.post(url, "application/json", b""))
        }
        QuarantineCommand::Drop(chosen) => each(chosen, client, out, "dropped", |url| client.delete(url)),
    }
}

fn list(json: bool, client: &Client, out: &mut dyn Write) -> Outcome {
    let answer = client.get("/v1/quarantine")?;
    if !answer.ok() {
        complain(&answer.detail());
    } else if json {
        writeln!(out, "{}", compact(&answer).map_err(|error| client.nonsense(&answer, error))?)?;
    } else {
        let entries = entries(client, &answer)?;
        for entry in &entries {
            let value = entry.value.as_ref().map_or("deleted".to_string(), |value| format!("{value:?}"));
            let [written, floor, since] =
                [entry.unix_ms, entry.floor_unix_ms, entry.since_unix_ms].map(|unix_ms| utc(unix_ms / 1_000));
            writeln!(out, "{}: {value}", entry.path)?;
            writeln!(out, "  written {written} as {}", entry.stamp)?;
            writeln!(out, "  set aside {since}, below the floor of {floor}")?;
        }
        writeln!(out, "{} in quarantine.", entries.len())?;
    }
    Ok(answer.exit())
}

fn entries(client: &Client, answer: &Answer) -> Result<Vec<Doubtful>, super::Failure> {
    let list: Quarantine = serde_json::from_str(&answer.body).map_err(|error| client.nonsense(answer, error))?;
    Ok(list.entries)
}

/// One that is refused does not keep the others; the exit code tells of the last that was.
fn each(
    chosen: &Chosen,
    client: &Client,
    out: &mut dyn Write,
    done: &str,
    ask: impl Fn(&str) -> Result<Answer, super::Failure>,
) -> Outcome {
    let mut paths = chosen.paths.clone();
    if chosen.all {
        let answer = client.get("/v1/quarantine")?;
        if !answer.ok() {
            complain(&answer.detail());
            return Ok(answer.exit());
        }
        paths = entries(client, &answer)?.into_iter().map(|entry| entry.path).collect();
    }
    let (mut exit, mut count) = (Exit::Done, 0);
    for path in &paths {
        let answer = ask(&format!("/v1/quarantine/{}", segments(path.trim_start_matches('/'))))?;
        if answer.ok() {
            count += 1;
        } else {
            complain(&format!("'{path}': {}", answer.detail()));
            exit = answer.exit();
        }
    }
    writeln!(out, "{count} {done}.")?;
    Ok(exit)
}
