//! `kinfolk tls`: the cluster's own certificate authority, and certificates that carry an EID.
//!
//! Only arguments and words here; the certificates are made by an [`Authority`].

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::{Exit, Failure, Outcome};
use crate::cluster::tls as issue;
use crate::core::eid::Eid;
use crate::node::unix_ms;

#[derive(Debug, Subcommand)]
pub enum TlsCommand {
    /// Make the cluster's own certificate authority: ca.pem for every server, ca.key to keep safe
    Init {
        /// Where to write the files
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The cluster's name, for people who read the certificate
        #[arg(long, value_name = "CLUSTER", default_value = "kinfolk")]
        name: String,
    },
    /// Make a certificate and key for one server, named after its EID
    Issue {
        /// Where ca.pem and ca.key are, and where to write the files
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The node's EID; a random one if it is left out. Not the EID of an attached Asterisk: an
        /// Asterisk ignores what comes under its own EID
        #[arg(long)]
        eid: Option<Eid>,
        /// How many days the certificate is good for
        #[arg(long, default_value_t = 825, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
}

/// Who makes the files. Each call returns the files it wrote and never replaces one.
trait Authority {
    fn init_ca(&self, dir: &Path, name: &str) -> Result<Vec<PathBuf>, String>;
    fn issue(&self, dir: &Path, eid: Eid, days: u32) -> Result<Vec<PathBuf>, String>;
}

/// The cluster's own certificate makers.
struct ClusterTls;

impl Authority for ClusterTls {
    fn init_ca(&self, dir: &Path, name: &str) -> Result<Vec<PathBuf>, String> {
        issue::init_ca(dir, name, unix_ms() / 1_000).map_err(|error| error.to_string())?;
        Ok([issue::CA_CERT_FILE, issue::CA_KEY_FILE].map(|file| dir.join(file)).to_vec())
    }

    fn issue(&self, dir: &Path, eid: Eid, days: u32) -> Result<Vec<PathBuf>, String> {
        let issued = issue::issue(dir, Some(eid), days, unix_ms() / 1_000).map_err(|error| error.to_string())?;
        Ok(vec![issued.cert, issued.key])
    }
}

pub fn run(command: &TlsCommand, out: &mut dyn Write) -> Outcome {
    run_with(&ClusterTls, command, out)
}

fn run_with(authority: &dyn Authority, command: &TlsCommand, out: &mut dyn Write) -> Outcome {
    let failed = |error: String| Failure::new(Exit::Failed, error);
    match command {
        TlsCommand::Init { dir, name } => {
            let files = authority.init_ca(dir, name).map_err(failed)?;
            print_files(&files, out)?;
            writeln!(out, "Next: kinfolk tls issue --dir {}, once for each server.", dir.display())?;
            writeln!(out, "Keep ca.key off the servers: whoever has it can make a member of this cluster.")?;
        }
        TlsCommand::Issue { dir, eid, days } => {
            let eid = eid.unwrap_or_else(random_eid);
            if eid.is_empty() {
                return Err(Failure::new(Exit::Usage, format_args!("{eid} is Asterisk's word for \"no EID\"")));
            }
            let files = authority.issue(dir, eid, *days).map_err(failed)?;
            writeln!(out, "EID {eid}, good for {days} days.")?;
            print_files(&files, out)?;
            writeln!(out, "Name them, and ca.pem, under [tls] in the configuration of that server.")?;
        }
    }
    Ok(Exit::Done)
}

fn print_files(files: &[PathBuf], out: &mut dyn Write) -> std::io::Result<()> {
    files.iter().try_for_each(|file| writeln!(out, "Wrote {}", file.display()))
}

/// A locally administered unicast address, so that it meets no EID that an Asterisk made of a network card.
fn random_eid() -> Eid {
    #[expect(clippy::disallowed_methods, reason = "a new identity, drawn once and written down")]
    let mut bytes: [u8; Eid::BYTES] = rand::random();
    bytes[0] = (bytes[0] & 0xfc) | 0x02;
    Eid::new(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Recorder;

    impl Authority for Recorder {
        fn init_ca(&self, dir: &Path, name: &str) -> Result<Vec<PathBuf>, String> {
            Ok(vec![dir.join(name)])
        }

        fn issue(&self, dir: &Path, eid: Eid, _days: u32) -> Result<Vec<PathBuf>, String> {
            Ok(vec![dir.join(eid.compact())])
        }
    }

    fn output(command: &TlsCommand) -> String {
        let mut out = Vec::new();
        run_with(&Recorder, command, &mut out).expect("done");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn it_says_which_files_it_wrote_and_what_comes_next() {
        let text = output(&TlsCommand::Init { dir: "d".into(), name: "c".to_string() });
        assert!(text.starts_with("Wrote d/c\n") && text.contains("kinfolk tls issue --dir d"), "{text}");
        let eid = Some(Eid::new([2, 0, 0, 0, 0, 1]));
        let text = output(&TlsCommand::Issue { dir: "d".into(), eid, days: 3 });
        assert!(text.starts_with("EID 02:00:00:00:00:01, good for 3 days.\nWrote d/020000000001\n"), "{text}");
    }

    #[test]
    fn a_random_eid_is_locally_administered_and_for_one_server() {
        for _ in 0..64 {
            assert_eq!(random_eid().bytes()[0] & 3, 2);
        }
    }
}
