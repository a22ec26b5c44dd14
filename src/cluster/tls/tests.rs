use std::os::unix::fs::PermissionsExt;

use super::*;

const NOW_S: u64 = 1_800_000_000;
const DAY_S: u64 = 86_400;

struct Ca {
    dir: tempfile::TempDir,
}

impl Ca {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        init_ca(dir.path(), "test", NOW_S).expect("a CA");
        Self { dir }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join(CA_CERT_FILE)
    }

    fn issue(&self) -> Issued {
        issue(self.dir.path(), None, NODE_VALID_DAYS, NOW_S).expect("a certificate")
    }

    fn load(&self, issued: &Issued) -> Result<Identity, TlsError> {
        Identity::load(&self.file(), &issued.cert, &issued.key, NOW_S)
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).expect("a file").permissions().mode() & 0o777
}

#[test]
fn an_issued_identity_loads_and_carries_its_eid_and_expiry() {
    let ca = Ca::new();
    let issued = ca.issue();
    let identity = ca.load(&issued).expect("an identity");
    assert_eq!(identity.eid(), issued.eid);
    assert_eq!(identity.expires_unix_s(), (NOW_S + u64::from(NODE_VALID_DAYS) * DAY_S).cast_signed());
}

#[test]
fn a_drawn_eid_is_locally_administered_and_not_multicast() {
    let ca = Ca::new();
    let first = ca.issue().eid.bytes()[0];
    assert_eq!(first & 0b11, 0b10);
}

#[test]
fn an_eid_can_be_chosen_but_not_the_empty_one() {
    let ca = Ca::new();
    let eid = Eid::new([2, 0, 0, 0, 1, 0]);
    let issued = issue(ca.dir.path(), Some(eid), 1, NOW_S).expect("a certificate");
    assert_eq!(issued.cert.file_name().expect("a name"), "020000000100.pem");
    assert_eq!(ca.load(&issued).expect("an identity").eid(), eid);
    let refused = issue(ca.dir.path(), Some(Eid::new([0; 6])), 1, NOW_S);
    assert!(matches!(refused, Err(TlsError::EmptyEid)), "{refused:?}");
}

#[test]
fn key_files_are_made_for_their_owner_only() {
    let ca = Ca::new();
    assert_eq!(mode(&ca.issue().key), 0o600);
    assert_eq!(mode(&ca.dir.path().join(CA_KEY_FILE)), 0o600);
}

#[test]
fn nothing_is_overwritten() {
    let ca = Ca::new();
    let before = std::fs::read(ca.file()).expect("a file");
    assert!(matches!(init_ca(ca.dir.path(), "test", NOW_S), Err(TlsError::Exists(_))));
    assert_eq!(std::fs::read(ca.file()).expect("a file"), before);
    let issued = ca.issue();
    let again = issue(ca.dir.path(), Some(issued.eid), 1, NOW_S);
    assert!(matches!(again, Err(TlsError::Exists(_))), "{again:?}");
}

#[test]
fn a_key_file_that_others_can_read_is_refused_with_the_remedy() {
    let ca = Ca::new();
    let issued = ca.issue();
    std::fs::set_permissions(&issued.key, std::fs::Permissions::from_mode(0o644)).expect("chmod");
    let error = ca.load(&issued).expect_err("refused");
    assert!(matches!(error, TlsError::KeyMode { mode: 0o644, .. }), "{error}");
    assert!(error.to_string().contains(&format!("chmod 600 {}", issued.key.display())), "{error}");
}

#[test]
fn an_expired_certificate_is_refused() {
    let ca = Ca::new();
    let issued = ca.issue();
    let later_s = NOW_S + u64::from(NODE_VALID_DAYS) * DAY_S + 1;
    let error = Identity::load(&ca.file(), &issued.cert, &issued.key, later_s).expect_err("refused");
    assert!(matches!(error, TlsError::Expired(_)), "{error}");
}

#[test]
fn a_certificate_of_tomorrow_is_refused_and_one_made_by_a_fast_clock_is_not() {
    let ca = Ca::new();
    let issued = ca.issue();
    assert!(Identity::load(&ca.file(), &issued.cert, &issued.key, NOW_S - DAY_S + 60).is_ok());
    let error = Identity::load(&ca.file(), &issued.cert, &issued.key, NOW_S - 2 * DAY_S).expect_err("refused");
    assert!(matches!(error, TlsError::NotYetValid(_)), "{error}");
}

#[test]
fn a_certificate_never_outlives_its_ca() {
    let ca = Ca::new();
    let issued = issue(ca.dir.path(), None, 2 * CA_VALID_DAYS, NOW_S).expect("a certificate");
    let ca_expires = NOW_S + u64::from(CA_VALID_DAYS) * DAY_S;
    assert_eq!(ca.load(&issued).expect("an identity").expires_unix_s(), ca_expires.cast_signed());
    let too_late = issue(ca.dir.path(), None, 1, ca_expires);
    assert!(matches!(too_late, Err(TlsError::Expired(_))), "{too_late:?}");
}

#[test]
fn a_certificate_of_another_ca_is_refused_even_if_it_bears_the_same_name() {
    let (ca, other) = (Ca::new(), Ca::new());
    let issued = other.issue();
    let error = ca.load(&issued).expect_err("refused");
    assert!(matches!(error, TlsError::ForeignCa { .. }), "{error}");
}

#[test]
fn a_key_that_does_not_belong_to_the_certificate_is_refused() {
    let ca = Ca::new();
    let (one, other) = (ca.issue(), ca.issue());
    let error = Identity::load(&ca.file(), &one.cert, &other.key, NOW_S).expect_err("refused");
    assert!(matches!(error, TlsError::ForeignKey { .. }), "{error}");
}

#[test]
fn a_certificate_without_an_eid_is_refused() {
    let ca = Ca::new();
    let certificate = certificates(&ca.file()).expect("certificates").swap_remove(0);
    assert_eq!(certificate_eid(&certificate), Err(CertificateEidError::NotOne(0)));
    assert_eq!(certificate_eid(&CertificateDer::from(vec![1, 2, 3])), Err(CertificateEidError::Malformed));
}

#[test]
fn files_that_are_absent_or_of_another_kind_are_named() {
    let ca = Ca::new();
    let issued = ca.issue();
    let absent = ca.dir.path().join("absent.pem");
    let error = Identity::load(&absent, &issued.cert, &issued.key, NOW_S).expect_err("refused");
    assert!(error.to_string().contains("absent.pem"), "{error}");
    let error = Identity::load(&ca.file(), &issued.key, &issued.key, NOW_S).expect_err("refused");
    assert!(matches!(error, TlsError::Pem { what: "certificate", .. }), "{error}");
    let swapped = Identity::load(&ca.file(), &issued.cert, &issued.cert, NOW_S).expect_err("refused");
    assert!(matches!(swapped, TlsError::KeyMode { .. } | TlsError::Pem { .. }), "{swapped}");
}
