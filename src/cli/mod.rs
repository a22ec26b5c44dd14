//! The command line: one file per group of commands, all of them clients of a node over HTTP, except
//! those that run a node or make files for one.
//!
//! Answers go to stdout, errors and progress to stderr, and the exit code says it once more (see
//! [`Exit`]). Nothing here knows a node's inside.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

mod backup;
mod client;
mod config;
mod database;
pub mod demo;
mod export;
mod floors;
mod import;
mod show_text;
mod status;
mod texts;
mod tls;
mod why;
mod words;

/// What the exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    Done = 0,
    /// The answer is no: a miss, a conflict, nothing removed.
    No = 1,
    /// The command itself, or the configuration, is wrong.
    Usage = 2,
    /// The node is unreachable or failed.
    Failed = 3,
}

/// Why a command stopped: what to tell on stderr, and the exit code.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { exit, message: message.to_string() }
    }
}

/// Output that cannot be written. Who closed the pipe has read enough, which is no failure.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self { exit: Exit::Done, message: String::new() };
        }
        Self::new(Exit::Failed, format_args!("cannot write the output: {error}"))
    }
}

type Outcome = Result<Exit, Failure>;

const EXAMPLES: &str = "\
Examples:
  kinfolk demo                             three nodes on this machine, in less than a minute
  kinfolk config example > node.toml       a configuration to start from, every key explained
  kinfolk tls init --dir tls               the cluster's own certificate authority
  kinfolk tls issue --dir tls              a certificate for one server
  kinfolk run --config node.toml           run a node
  kinfolk database put shared CF global    share the family CF with the other servers
  kinfolk database put CF 1001 1002        write, here; all servers that share CF get it
  kinfolk database show CF
  kinfolk status
  asterisk -rx 'database show' | kinfolk import -

Exit codes: 0 done; 1 the answer is no; 2 wrong usage; 3 the node is unreachable or failed.";

/// One AstDB for all your Asterisk servers.
///
/// Kinfolk keeps chosen families of the Asterisk database equal on every server of a cluster, through
/// crashes, partitions and clock errors. Each server runs a node (`kinfolk run`); the other commands ask
/// the node on this server, or the one that --node names.
#[derive(Debug, Parser)]
#[command(name = "kinfolk", version, after_help = EXAMPLES, verbatim_doc_comment)]
struct Cli {
    #[command(flatten)]
    node: NodeArgs,
    #[command(subcommand)]
    command: Command,
}

/// Which node to ask.
#[derive(Clone, Debug, Args)]
struct NodeArgs {
    /// The node to ask, by its HTTP address
    #[arg(long, global = true, value_name = "URL", env = "KINFOLK_NODE", default_value = "http://127.0.0.1:7481")]
    node: String,
    /// File with the bearer token, for a node that wants one; else the variable KINFOLK_TOKEN
    #[arg(long, global = true, value_name = "FILE")]
    token_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a node until it is told to stop (SIGTERM)
    Run {
        /// The node's configuration; see `kinfolk config example`
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Print an example configuration, or check one
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Make the certificates that the nodes of a cluster know each other by
    #[command(subcommand)]
    Tls(tls::TlsCommand),
    /// Watch three nodes on this machine end equal, whatever happens to them
    Demo(demo::DemoArgs),
    /// Read, write and share database entries, with the words of Asterisk's own CLI
    Database(database::DatabaseArgs),
    /// Show the node, the members of its cluster, the shared families and how far behind they are
    Status {
        /// Print the node's answer as JSON
        #[arg(long)]
        json: bool,
    },
    /// Tell why a key has the value it has: who wrote it when, and what it won against
    Why(why::WhyArgs),
    /// Stop waiting for a member that is gone for good, so that deletions need not be remembered for it
    Decommission(floors::DecommissionArgs),
    /// List, adopt or drop records that nobody can tell from deleted ones
    #[command(subcommand)]
    Quarantine(floors::QuarantineCommand),
    /// Write the whole database of a running node into one file
    Backup(backup::BackupArgs),
    /// Make the store of a new member from a backup
    Restore(backup::RestoreArgs),
    /// Print all records as JSON lines with their stamps, for a backup or to compare servers
    Export(export::ExportArgs),
    /// Read records from an export, or from what `asterisk -rx "database show"` prints
    Import(import::ImportArgs),
}

/// Runs the command that `args` (the program's name first) say.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and the version are errors to clap, with exit code 0. If they cannot be printed there
            // is nowhere left to say so.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage as u8));
        }
    };
    let mut out = io::BufWriter::new(io::stdout().lock());
    let outcome = dispatch(cli, &mut out);
    let outcome = out.flush().map_err(Failure::from).and(outcome);
    let exit = outcome.unwrap_or_else(|failure| {
        if !failure.message.is_empty() {
            complain(&failure.message);
        }
        failure.exit
    });
    ExitCode::from(exit as u8)
}

fn dispatch(cli: Cli, out: &mut dyn Write) -> Outcome {
    let node = &cli.node;
    match cli.command {
        Command::Run { config } => run_node(&config),
        Command::Config(command) => config::run(&command, out),
        Command::Tls(command) => tls::run(&command, out),
        Command::Demo(args) => demo::run(&args, out),
        Command::Database(args) => database::run(&args, node, out),
        Command::Status { json } => status::run(&client::Client::new(node)?, json, out),
        Command::Why(args) => why::run(&args, &client::Client::new(node)?, out),
        Command::Decommission(args) => floors::decommission(&args, &client::Client::new(node)?, out),
        Command::Quarantine(command) => floors::quarantine(&command, &client::Client::new(node)?, out),
        Command::Backup(args) => backup::backup(&args, &client::Client::new(node)?, out),
        Command::Restore(args) => backup::restore(&args, out),
        Command::Export(args) => export::run(&args, &client::Client::new(node)?, out),
        Command::Import(args) => import::run(&args, node, out),
    }
}

fn run_node(file: &std::path::Path) -> Outcome {
    let config = crate::config::Config::load(file).map_err(|error| Failure::new(Exit::Usage, error))?;
    crate::node::run(config, file).map_err(|error| Failure::new(Exit::Failed, error))?;
    Ok(Exit::Done)
}

/// Says something on stderr. If that is closed nobody wants to know.
fn complain(message: &str) {
    let _ = writeln!(io::stderr().lock(), "kinfolk: {message}");
}
