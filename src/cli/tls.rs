//! `kinfolk tls`: the cluster's own certificate authority, and certificates that carry an EID.
//!
//! Only arguments and words here; `cluster::tls` makes the certificates.

use std::io::Write;
use std::path::PathBuf;

use clap::Subcommand;

use super::{Exit, Failure, Outcome};
use crate::cluster::tls::{CA_CERT_FILE, CA_KEY_FILE, Issued, TlsError, init_ca, issue};
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

pub fn run(command: &TlsCommand, out: &mut dyn Write) -> Outcome {
    let failed = |error: TlsError| Failure::new(Exit::Failed, error);
    let now_unix_s = unix_ms() / 1_000;
    match command {
        TlsCommand::Init { dir, name } => {
            init_ca(dir, name, now_unix_s).map_err(failed)?;
            print_files(&[dir.join(CA_CERT_FILE), dir.join(CA_KEY_FILE)], out)?;
            writeln!(out, "Next: kinfolk tls issue --dir {}, once for each server.", dir.display())?;
            writeln!(out, "Keep ca.key off the servers: whoever has it can make a member of this cluster.")?;
        }
        TlsCommand::Issue { dir, eid: Some(eid), .. } if eid.is_empty() => {
            return Err(Failure::new(Exit::Usage, format_args!("{eid} is Asterisk's word for \"no EID\" ({})", dir.display())));
        }
        TlsCommand::Issue { dir, eid, days } => {
            let Issued { eid, cert, key } = issue(dir, *eid, *days, now_unix_s).map_err(failed)?;
            writeln!(out, "EID {eid}, good for {days} days.")?;
            print_files(&[cert, key], out)?;
            writeln!(out, "Name them, and ca.pem, under [tls] in the configuration of that server.")?;
        }
    }
    Ok(Exit::Done)
}

fn print_files(files: &[PathBuf], out: &mut dyn Write) -> std::io::Result<()> {
    files.iter().try_for_each(|file| writeln!(out, "Wrote {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(command: &TlsCommand) -> String {
        let mut out = Vec::new();
        run(command, &mut out).expect("done");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn it_says_which_files_it_wrote_and_what_comes_next() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().join("tls");
        let shown = dir.display().to_string();
        let text = output(&TlsCommand::Init { dir: dir.clone(), name: "c".to_string() });
        assert!(text.starts_with(&format!("Wrote {shown}/ca.pem\n")), "{text}");
        assert!(text.contains(&format!("kinfolk tls issue --dir {shown}")), "{text}");
        let eid = Some(Eid::new([2, 0, 0, 0, 0, 1]));
        let text = output(&TlsCommand::Issue { dir: dir.clone(), eid, days: 3 });
        assert!(text.starts_with(&format!("EID 02:00:00:00:00:01, good for 3 days.\nWrote {shown}/020000000001.pem\n")), "{text}");
        let text = output(&TlsCommand::Issue { dir, eid: None, days: 3 });
        let eid: Eid = text[4..4 + Eid::TEXT_BYTES].parse().expect("a random EID");
        assert_eq!(eid.bytes()[0] & 3, 2, "locally administered, and for one server");
    }
}
