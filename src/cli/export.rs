//! `kinfolk export`: the node's records as JSON lines, passed through as they come.

use std::io::{Read, Write};

use clap::Args;

use super::client::{Answer, Client};
use super::{Exit, Failure, Outcome, complain};

const CHUNK_BYTES: usize = 64 * 1024;
/// How much of an error's body is read.
const PROBLEM_MAX_BYTES: u64 = 64 * 1024;

#[derive(Debug, Args)]
#[command(after_help = "\
Sorted by path, then owner: two servers that hold the same print the same bytes.

Examples:
  kinfolk export > backup.jsonl
  kinfolk --node http://10.0.0.2:7481 export | cmp - backup.jsonl")]
pub struct ExportArgs {
    /// Local records too, not only those of shared families
    #[arg(long)]
    all: bool,
}

pub fn run(args: &ExportArgs, client: &Client, out: &mut dyn Write) -> Outcome {
    let path = if args.all { "/v1/export?all=true" } else { "/v1/export" };
    let (status, mut body) = client.stream(path)?;
    if status != 200 {
        return refused(status, body, client);
    }
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut bytes = 0_u64;
    let mut last = b'\n';
    loop {
        let read = body.read(&mut buffer).map_err(|error| broken_off(bytes, client, &error))?;
        if read == 0 {
            break;
        }
        out.write_all(&buffer[..read])?;
        bytes += read as u64;
        last = buffer[read - 1];
    }
    if last != b'\n' {
        return Err(broken_off(bytes, client, &"the last line is incomplete"));
    }
    Ok(Exit::Done)
}

pub(super) fn refused(status: u16, body: impl Read, client: &Client) -> Outcome {
    let mut text = Vec::new();
    // An error that cannot be read in full is told as far as it goes.
    let _ = body.take(PROBLEM_MAX_BYTES).read_to_end(&mut text);
    let answer = Answer { status, body: String::from_utf8_lossy(&text).into_owned() };
    if status == 401 {
        return Err(client.token_refused(&answer));
    }
    complain(&answer.detail());
    Ok(if answer.ok() { Exit::Failed } else { answer.exit() })
}

fn broken_off(bytes: u64, client: &Client, error: &dyn std::fmt::Display) -> Failure {
    let message = format!(
        "the export of {} broke off after {bytes} bytes ({error}): what was printed is not complete, run it again",
        client.base()
    );
    Failure::new(Exit::Failed, message)
}
