//! `kinfolk demo`: three nodes on this machine, everything that goes wrong in a telephone network, and the
//! proof that they end equal.
//!
//! Nodes are processes of this very program. Nothing is left behind: the processes are ended by the ids
//! they were started with and the directory is removed, also on Ctrl-C and on a failure; after a failure
//! the logs are kept and named. Exit code 0 only if every node is equal and every acknowledged write is
//! the winner or lost to a greater stamp.
//!
//! [`fleet`], [`forwarder`], [`api`] and [`acks`] serve the tests of the real binary too.

pub mod acks;
pub mod api;
pub mod fleet;
pub mod forwarder;
mod report;
mod story;

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::{Exit, Failure, Outcome};
use fleet::{Fleet, FleetError, Plan};

/// The letters of the nodes, which end their EIDs too.
const NAMES: [&str; 3] = ["A", "B", "C"];

const SHARED: [(&str, &str); 8] = [
    ("AMPUSER", "global"),
    ("CF", "global"),
    ("CW", "global"),
    ("CustomDevstate", "global"),
    ("CustomPresence", "global"),
    ("DND", "global"),
    ("blacklist", "global"),
    ("hotdesk", "unique"),
];

#[derive(Debug, Args)]
#[command(after_help = "\
Everything is on 127.0.0.1 and in one temporary directory; no root is needed, and nothing is left
behind. It takes less than a minute.")]
pub struct DemoArgs {
    /// Keep the directory: configurations, certificates, databases and logs
    #[arg(long)]
    keep: bool,
}

/// Why the demo stopped.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error(transparent)]
    Fleet(#[from] FleetError),
    #[error("{0}")]
    Broken(String),
    #[error("{}", .0.message)]
    Output(Failure),
}

impl From<std::io::Error> for DemoError {
    fn from(error: std::io::Error) -> Self {
        Self::Output(error.into())
    }
}

impl From<api::CallError> for DemoError {
    fn from(error: api::CallError) -> Self {
        Self::Fleet(error.into())
    }
}

pub fn run(args: &DemoArgs, out: &mut dyn Write) -> Outcome {
    let interrupted = Arc::new(AtomicBool::new(false));
    watch_signals(interrupted.clone())
        .map_err(|error| Failure::new(Exit::Failed, format_args!("cannot watch for signals: {error}")))?;
    let binary = std::env::current_exe()
        .map_err(|error| Failure::new(Exit::Failed, format_args!("cannot find this program: {error}")))?;
    let plan = Plan::new(binary, 3, &SHARED).forwarded();
    let mut fleet = Fleet::prepare(plan, interrupted.clone()).map_err(|error| Failure::new(Exit::Failed, error))?;
    let told = story::tell(&mut fleet, out);
    // A call that broke off because of Ctrl-C is no failure of a node.
    let told = if interrupted.load(Ordering::Relaxed) { Err(FleetError::Interrupted.into()) } else { told };
    let failed = matches!(&told, Err(DemoError::Broken(_) | DemoError::Fleet(_)));
    let ended: String = fleet.ended().into_iter().map(|sentence| format!("; {sentence}")).collect();
    let kept = (args.keep || (failed && !interrupted.load(Ordering::Relaxed))).then(|| fleet.keep());
    drop(fleet);
    if let Some(dir) = &kept {
        writeln!(out, "Kept: {} (each node's directory has its log)", dir.display())?;
    }
    match told {
        Ok(()) => Ok(Exit::Done),
        Err(DemoError::Output(failure)) => Err(failure),
        Err(DemoError::Fleet(FleetError::Interrupted)) => {
            Err(Failure::new(Exit::Failed, "interrupted; the nodes are stopped and their directory is removed"))
        }
        Err(error) => Err(Failure::new(Exit::Failed, format_args!("the demo FAILED: {error}{ended}"))),
    }
}

/// Sets `interrupted` at Ctrl-C, SIGTERM or SIGHUP; the process then ends in its own way.
fn watch_signals(interrupted: Arc<AtomicBool>) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate, mut hang_up) = {
        let _within = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?)
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hang_up.recv() => {}
            }
        });
        interrupted.store(true, Ordering::Relaxed);
    })?;
    Ok(())
}
