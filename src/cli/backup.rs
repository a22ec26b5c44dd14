//! `kinfolk backup` and `kinfolk restore`: the whole database of a running node in one file, and a new
//! member's store made from it.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::client::Client;
use super::export::refused;
use super::{Exit, Failure, Outcome};
use crate::core::backup::{BackupError, Decoder, Head, PIECE_HEADER_BYTES, PREAMBLE_BYTES, Piece};
use crate::core::eid::Eid;
use crate::node::restore::{self, Target};
use crate::status::utc;

#[derive(Debug, Args)]
#[command(after_help = "\
The file is complete or not there: it is written under another name, checked while it comes, synced and then
renamed. Only its owner can read it. It holds every key, tombstones and stamps too, not the certificates.

Examples:
  kinfolk backup /var/backups/kinfolk-monday
  kinfolk backup --replace /var/backups/kinfolk        (for a nightly job)")]
pub struct BackupArgs {
    /// Where to write it
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Take the place of a file that is there
    #[arg(long)]
    replace: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The node must not run. What was deleted since the backup stays deleted: the restored records keep their
stamps, and the node joins its cluster like any new member.

Examples:
  kinfolk restore /var/backups/kinfolk-monday --config /etc/kinfolk/node.toml
  kinfolk restore kinfolk-monday --data-dir /var/lib/kinfolk --eid 02:00:00:00:01:01")]
pub struct RestoreArgs {
    /// What `kinfolk backup` wrote
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The configuration of the node to restore: says its data directory and, by its certificate, its EID
    #[arg(long, value_name = "FILE", required_unless_present_all = ["data_dir", "eid"])]
    config: Option<PathBuf>,
    /// The data directory to make the store in, instead of the configuration's
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The EID of the node that will open the store, instead of the certificate's
    #[arg(long)]
    eid: Option<Eid>,
}

pub fn backup(args: &BackupArgs, client: &Client, out: &mut dyn Write) -> Outcome {
    let fault = |error: io::Error| {
        let message = format!("cannot write the backup {}: {error}", args.file.display());
        Failure::new(Exit::Failed, message)
    };
    if args.file.exists() && !args.replace {
        let message =
            format!("{} is there already: name another file, or give --replace to replace it", args.file.display());
        return Err(Failure::new(Exit::No, message));
    }
    let dir = match args.file.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    };
    let (status, body) = client.stream("/v1/backup")?;
    if status != 200 {
        return refused(status, body, client);
    }
    // Readable by its owner alone, from its first byte on; it goes away by itself if this fails.
    let mut file = tempfile::Builder::new().prefix(".kinfolk-backup-").tempfile_in(dir).map_err(fault)?;
    let summary = {
        let mut copy = Copy { from: body, to: file.as_file_mut(), bytes: 0, failed: None };
        let checked = check(&mut copy);
        let (bytes, failed) = (copy.bytes, copy.failed);
        match (checked, failed) {
            (_, Some(error)) => return Err(fault(error)),
            (Ok(summary), None) => summary,
            (Err(why), None) => return Err(broken_off(client, bytes, &why)),
        }
    };
    file.as_file().sync_all().map_err(fault)?;
    let kept = if args.replace { file.persist(&args.file) } else { file.persist_noclobber(&args.file) };
    kept.map_err(|error| fault(error.error))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(fault)?;
    writeln!(out, "{} of node {}, in {}", summary.told(), summary.head.eid, args.file.display())?;
    Ok(Exit::Done)
}

fn broken_off(client: &Client, bytes: u64, why: &dyn std::fmt::Display) -> Failure {
    let message = format!(
        "the backup of {} broke off after {bytes} bytes ({why}): no file was written, run it again",
        client.base()
    );
    Failure::new(Exit::Failed, message)
}

pub fn restore(args: &RestoreArgs, out: &mut dyn Write) -> Outcome {
    let target = target(args)?;
    let fault = |why: &dyn std::fmt::Display, way_out: &str| {
        let message = format!("{}: {why}{way_out}", args.file.display());
        Failure::new(Exit::Failed, message)
    };
    // Read to its end before anything is made of it: a damaged backup leaves nothing behind.
    let open = || File::open(&args.file).map(BufReader::new);
    let summary = check(&mut open().map_err(|error| fault(&error, ""))?)
        .map_err(|why| fault(&why, ". Nothing was restored; take another backup"))?;
    let mut pieces = Pieces::new(open().map_err(|error| fault(&error, ""))?);
    let next = &mut || pieces.next().map_err(|why| why.to_string());
    restore::restore(&target, next).map_err(|error| Failure::new(Exit::Failed, error))?;
    writeln!(out, "{} of node {}, into {}", summary.told(), summary.head.eid, target.data_dir.display())?;
    writeln!(out, "Next: start node {} with that data directory. It joins its cluster like a new member.", target.eid)?;
    Ok(Exit::Done)
}

fn target(args: &RestoreArgs) -> Result<Target, Failure> {
    if let (Some(data_dir), Some(eid)) = (&args.data_dir, args.eid) {
        return Ok(Target { data_dir: data_dir.clone(), eid });
    }
    let file = args.config.as_deref().expect("clap wants it, unless both others are there");
    let config = crate::config::Config::load(file).map_err(|error| Failure::new(Exit::Usage, error))?;
    let mut target = restore::target_of(&config).map_err(|error| Failure::new(Exit::Failed, error))?;
    target.data_dir = args.data_dir.clone().unwrap_or(target.data_dir);
    target.eid = args.eid.unwrap_or(target.eid);
    Ok(target)
}

/// What a whole backup holds.
struct Summary {
    head: Head,
    records: u64,
    families: u64,
}

impl Summary {
    fn told(&self) -> String {
        let taken = utc(self.head.taken_unix_ms / 1_000);
        format!("{} records and the marks of {} shared families, taken {taken}", self.records, self.families)
    }
}

#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Backup(#[from] BackupError),
    #[error("{0}")]
    Read(#[from] io::Error),
}

/// Reads a backup to its end.
fn check(from: &mut impl Read) -> Result<Summary, Broken> {
    let mut pieces = Pieces::new(from);
    let (mut head, mut families) = (None, 0);
    while let Some(piece) = pieces.next()? {
        match piece {
            Piece::Head(found) => head = Some(found),
            Piece::Mark { .. } => families += 1,
            Piece::Records(_) | Piece::End { .. } => {}
        }
    }
    let head = head.ok_or(BackupError::CutOff { pieces: 0 })?;
    Ok(Summary { head, records: pieces.decoder.records(), families })
}

/// The pieces of a backup, one after the other.
struct Pieces<R> {
    from: R,
    decoder: Decoder,
    begun: bool,
}

impl<R: Read> Pieces<R> {
    fn new(from: R) -> Self {
        Self { from, decoder: Decoder::default(), begun: false }
    }

    /// None after the last one, when the bytes end there as well.
    fn next(&mut self) -> Result<Option<Piece>, Broken> {
        if !self.begun {
            let mut preamble = [0; PREAMBLE_BYTES];
            self.fill(&mut preamble)?;
            self.decoder = Decoder::begin(&preamble)?;
            self.begun = true;
        }
        if self.decoder.ended() {
            let more = self.from.read(&mut [0])?;
            return if more == 0 { Ok(None) } else { Err(BackupError::LeftOver.into()) };
        }
        let mut header = [0; PIECE_HEADER_BYTES];
        self.fill(&mut header)?;
        let mut row = vec![0; self.decoder.row_bytes(&header)?];
        self.fill(&mut row)?;
        Ok(Some(self.decoder.piece(&header, &row)?))
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), Broken> {
        self.from.read_exact(bytes).map_err(|error| match (error.kind(), self.decoder.finish()) {
            (io::ErrorKind::UnexpectedEof, Err(cut_off)) => cut_off.into(),
            _ => error.into(),
        })
    }
}

/// Writes down what is read.
struct Copy<'a, R> {
    from: R,
    to: &'a mut File,
    bytes: u64,
    /// Why it could not be written down.
    failed: Option<io::Error>,
}

impl<R: Read> Read for Copy<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        if let Err(error) = self.to.write_all(&buffer[..read]) {
            let kind = error.kind();
            self.failed = Some(error);
            return Err(kind.into());
        }
        self.bytes += read as u64;
        Ok(read)
    }
}
