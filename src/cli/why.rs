//! `kinfolk why /family/key`: what a key holds, who wrote it when, and what it won against.

use std::io::{self, Write};

use clap::Args;

use super::client::{Client, segments};
use super::database::compact;
use super::{Exit, Outcome, complain};
use crate::core::path::Path;
use crate::status::utc;
use crate::status::why::{LostWrite, Why, Write as Written};

#[derive(Debug, Args)]
#[command(after_help = "\
A node remembers only writes that lost since it started, and not many: ask soon, and ask the node that
may have seen them (--node).

Examples:
  kinfolk why /CF/1001
  kinfolk why /02:00:00:00:01:00/hotdesk/1001    the copy of another server, in a unique family")]
pub struct WhyArgs {
    /// The full path of the key, as `kinfolk database show` prints it
    #[arg(value_name = "/FAMILY/KEY")]
    path: String,
    /// Print the node's answer as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &WhyArgs, client: &Client, out: &mut dyn Write) -> Outcome {
    let path = match Path::new(&args.path) {
        Ok(path) => path,
        Err(error) => {
            complain(&format!("'{}': {error}", args.path));
            return Ok(Exit::Usage);
        }
    };
    let answer = client.get(&format!("/v1/why/{}", segments(&path.as_str()[1..])))?;
    if args.json {
        writeln!(out, "{}", compact(&answer).map_err(|error| client.nonsense(&answer, error))?)?;
    } else if answer.ok() {
        let why: Why = serde_json::from_str(&answer.body).map_err(|error| client.nonsense(&answer, error))?;
        print(&why, out)?;
    } else {
        complain(&answer.detail());
    }
    Ok(answer.exit())
}

fn print(why: &Why, out: &mut dyn Write) -> io::Result<()> {
    match (&why.family, why.shared, why.owner) {
        (Some(family), Some(mode), Some(owner)) => {
            writeln!(out, "{}: the copy of server {owner} in family '{family}', shared as {mode}", why.path)?;
        }
        (Some(family), Some(mode), None) => writeln!(out, "{}: in family '{family}', shared as {mode}", why.path)?,
        _ => writeln!(out, "{}: not shared, this node's own", why.path)?,
    }
    match &why.winner {
        None => writeln!(out, "\nNothing stands there now.")?,
        Some(winner) => {
            writeln!(out, "\n{}", said(winner))?;
            writeln!(out, "  written at {} by {}{}", moment(winner.unix_ms), winner.origin, came(why))?;
            writeln!(out, "  stamp      {}", winner.stamp)?;
        }
    }
    if why.losers.is_empty() {
        return writeln!(out, "\nThis node has seen no other write to it lose since it started.");
    }
    writeln!(out, "\nIt won against, newest first:")?;
    why.losers.iter().try_for_each(|loser| print_loser(loser, out))
}

fn print_loser(loser: &LostWrite, out: &mut dyn Write) -> io::Result<()> {
    let how = match loser.how.as_str() {
        "overwritten" => "overwritten at this node",
        "replaced" => "replaced by a later write that arrived",
        "late" => "arrived after a later write",
        other => other,
    };
    writeln!(out, "  {}", said(&loser.write))?;
    writeln!(out, "    written at {} by {}", moment(loser.write.unix_ms), loser.write.origin)?;
    writeln!(out, "    {how} at {}", moment(loser.seen_unix_ms))?;
    writeln!(out, "    stamp      {}", loser.write.stamp)
}

fn said(write: &Written) -> String {
    match &write.value {
        Some(value) => format!("Value: {value}"),
        None => "Deleted".to_string(),
    }
}

fn came(why: &Why) -> &'static str {
    match why.arrived.as_deref() {
        Some("local") => ", at this node",
        Some("far") => ", came from another site",
        _ => "",
    }
}

/// To the millisecond: two writes that compete are often that close.
fn moment(unix_ms: u64) -> String {
    let second = utc(unix_ms / 1_000);
    format!("{}.{:03} UTC", second.trim_end_matches(" UTC"), unix_ms % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::eid::Eid;
    use crate::core::family::Mode;

    fn written(value: Option<&str>, last: u8) -> Written {
        Written {
            value: value.map(str::to_string),
            stamp: format!("1790000000123.0@02:00:00:00:00:0{last}#00000000000000ab"),
            unix_ms: 1_790_000_000_123,
            origin: Eid::new([2, 0, 0, 0, 0, last]),
        }
    }

    #[test]
    fn the_winner_and_the_losers_are_told_in_sentences() {
        let loser = LostWrite {
            write: written(Some("old"), 2),
            lost_to: "…".into(),
            how: "late".into(),
            seen_unix_ms: 1_790_000_001_000,
        };
        let why = Why {
            path: "/CF/1001".into(),
            owner: None,
            family: Some("CF".into()),
            shared: Some(Mode::Global),
            winner: Some(written(None, 1)),
            arrived: Some("local".into()),
            losers: vec![loser],
            losers_max: 1_024,
        };
        let mut out = Vec::new();
        print(&why, &mut out).expect("prints");
        let wanted = "\
/CF/1001: in family 'CF', shared as global

Deleted
  written at 2026-09-21 14:13:20.123 UTC by 02:00:00:00:00:01, at this node
  stamp      1790000000123.0@02:00:00:00:00:01#00000000000000ab

It won against, newest first:
  Value: old
    written at 2026-09-21 14:13:20.123 UTC by 02:00:00:00:00:02
    arrived after a later write at 2026-09-21 14:13:21.000 UTC
    stamp      1790000000123.0@02:00:00:00:00:02#00000000000000ab
";
        assert_eq!(String::from_utf8(out).expect("UTF-8"), wanted);
    }
}
