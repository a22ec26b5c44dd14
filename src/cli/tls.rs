//! `kinfolk tls`: the cluster's own certificate authority, and certificates that carry an EID.
//!
//! Only arguments and words here; `cluster::tls` makes the certificates.

use std::io::Write;
use std::path::PathBuf;

use clap::Subcommand;

use super::{Exit, Failure, Outcome};
use crate::cluster::tls::{
    CA_CERT_FILE, CA_KEY_FILE, Issued, Revoked, Serial, TlsError, Wanted, init_ca, issue_wanted, revoke,
};
use crate::core::eid::Eid;
use crate::core::path::Family;
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
        /// A family that the others trust this node for, and what lies under it; once for each. Left out: all
        #[arg(long = "family", value_name = "FAMILY")]
        families: Vec<Family>,
        /// Put the files of the EID's former certificate aside, as <eid>.1.pem and so on
        #[arg(long, requires = "eid")]
        renew: bool,
    },
    /// Add certificates to the list of revoked ones, crl.pem beside the CA
    Revoke {
        /// Where ca.pem, ca.key and the certificates are
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// A node of which every certificate that lies in DIR is revoked
        #[arg(long = "eid", value_name = "EID", required_unless_present = "serials")]
        eids: Vec<Eid>,
        /// A certificate's serial number in hexadecimal, as openssl shows it, with or without colons
        #[arg(long = "serial", value_name = "HEX", value_parser = serial)]
        serials: Vec<Hex>,
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
            return Err(Failure::new(
                Exit::Usage,
                format_args!("{eid} is Asterisk's word for \"no EID\" ({})", dir.display()),
            ));
        }
        TlsCommand::Issue { dir, eid, days, families, renew } => {
            let wanted = Wanted { eid: *eid, families: families.clone(), valid_days: *days, renew: *renew };
            let Issued { eid, cert, key } = issue_wanted(dir, &wanted, now_unix_s).map_err(failed)?;
            writeln!(out, "EID {eid}, good for {days} days.")?;
            if !families.is_empty() {
                let names: Vec<&str> = families.iter().map(Family::as_str).collect();
                writeln!(out, "Trusted for these families only: {}", names.join(", "))?;
            }
            print_files(&[cert, key], out)?;
            writeln!(out, "Name them, and ca.pem, under [tls] in the configuration of that server.")?;
        }
        TlsCommand::Revoke { dir, eids, serials } => {
            let serials: Vec<Serial> = serials.iter().map(|serial| serial.0.clone()).collect();
            let Revoked { file, added, total } = revoke(dir, eids, &serials, now_unix_s).map_err(failed)?;
            writeln!(out, "Wrote {}: {added} certificates more, {total} in all.", file.display())?;
            writeln!(out, "Copy it to every server, name it as crl under [tls], and reload: systemctl reload kinfolk")?;
        }
    }
    Ok(Exit::Done)
}

/// A serial number as it was given; clap would take a plain `Vec` for several arguments.
#[derive(Clone, Debug)]
pub struct Hex(Serial);

fn serial(text: &str) -> Result<Hex, String> {
    let digits: String = text.chars().filter(|c| *c != ':').collect();
    let digits = if digits.len() % 2 == 1 { format!("0{digits}") } else { digits };
    let byte = |at: usize| digits.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes: Option<Serial> = (0..digits.len()).step_by(2).map(byte).collect();
    let bytes = bytes.filter(|bytes| (1..=20).contains(&bytes.len()));
    bytes.map(Hex).ok_or_else(|| "1 to 40 hexadecimal digits are wanted".to_string())
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
        let text = output(&TlsCommand::Issue { dir: dir.clone(), eid, days: 3, families: vec![], renew: false });
        assert!(
            text.starts_with(&format!("EID 02:00:00:00:00:01, good for 3 days.\nWrote {shown}/020000000001.pem\n")),
            "{text}"
        );
        let text = output(&TlsCommand::Issue { dir, eid: None, days: 3, families: vec![], renew: false });
        let eid: Eid = text[4..4 + Eid::TEXT_BYTES].parse().expect("a random EID");
        assert_eq!(eid.bytes()[0] & 3, 2, "locally administered, and for one server");
    }
}
