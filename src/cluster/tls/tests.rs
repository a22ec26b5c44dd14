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
fn a_certificate_of_another_ca_of_the_same_cluster_name_is_refused() {
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

impl Ca {
    fn paths(&self, issued: &Issued, crl: Option<PathBuf>) -> IdentityFiles {
        IdentityFiles { ca: self.file(), cert: issued.cert.clone(), key: issued.key.clone(), crl }
    }
}

/// The clock of rustls is the real one, so certificates that are checked by it are made by it.
fn today_s() -> u64 {
    UnixTime::now().as_secs()
}

fn chain(issued: &Issued) -> Vec<CertificateDer<'static>> {
    certificates(&issued.cert).expect("certificates")
}

fn issued_today(ca: &Ca, families: &[&str]) -> Issued {
    let families = families.iter().map(|name| crate::core::path::Family::new(name).expect("a family")).collect();
    issue_wanted(ca.dir.path(), &Wanted { families, valid_days: 2, ..Wanted::default() }, today_s()).expect("issued")
}

fn ca_today() -> Ca {
    let dir = tempfile::tempdir().expect("a directory");
    init_ca(dir.path(), "test", today_s()).expect("a CA");
    Ca { dir }
}

#[test]
fn a_certificate_that_names_families_grants_these_and_one_that_names_none_grants_all() {
    let ca = Ca::new();
    assert_eq!(certificate_grants(&chain(&ca.issue())[0]), Ok(Grants::All));
    let names = ["CF", "weird name/%é", "a/b"];
    let issued = issued_today(&ca, &names);
    let grants = certificate_grants(&chain(&issued)[0]).expect("grants");
    let wanted = names.map(|name| crate::core::path::Family::new(name).expect("a family"));
    assert_eq!(grants, Grants::only(wanted));
    assert_eq!(certificate_eid(&chain(&issued)[0]), Ok(issued.eid), "families do not hide the EID");
}

#[test]
fn a_renewed_certificate_puts_the_former_one_aside_and_both_can_be_revoked_by_the_eid() {
    let ca = ca_today();
    let first = issued_today(&ca, &[]);
    let renew = Wanted { eid: Some(first.eid), valid_days: 2, renew: true, ..Wanted::default() };
    for n in 1..=2 {
        issue_wanted(ca.dir.path(), &renew, today_s()).expect("renewed");
        assert!(first.cert.with_extension(format!("{n}.pem")).exists());
        assert_eq!(mode(&first.key.with_extension(format!("{n}.key"))), 0o600);
    }
    let other = issued_today(&ca, &[]);
    let revoked = revoke(ca.dir.path(), &[first.eid], &[], today_s()).expect("revoked");
    assert_eq!((revoked.added, revoked.total), (3, 3));
    let identity = Identity::load_files(&ca.paths(&other, Some(revoked.file)), today_s()).expect("an identity");
    assert_eq!(identity.revoked(), 3);
    for cert in [first.cert.clone(), first.cert.with_extension("1.pem"), first.cert.with_extension("2.pem")] {
        assert_eq!(identity.check(&certificates(&cert).expect("a certificate")), Err(Distrust::Revoked), "{cert:?}");
    }
    assert_eq!(identity.check(&chain(&other)), Ok(()));
    let absent = revoke(ca.dir.path(), &[Eid::new([2; 6])], &[], today_s()).expect_err("nothing to revoke");
    assert!(matches!(absent, TlsError::NoCertificateOf { .. }), "{absent}");
}

#[test]
fn a_list_only_grows_and_takes_serial_numbers_too() {
    let ca = ca_today();
    let dir = ca.dir.path();
    let (one, two) = (issued_today(&ca, &[]), issued_today(&ca, &[]));
    assert_eq!(revoke(dir, &[one.eid], &[], today_s()).expect("revoked").total, 1);
    assert_eq!(revoke(dir, &[], &[vec![0, 0x7f, 1]], today_s()).expect("revoked").total, 2);
    let again = revoke(dir, &[one.eid], &[vec![0x7f, 1]], today_s()).expect("revoked");
    assert_eq!((again.added, again.total), (0, 2));
    let identity = Identity::load_files(&ca.paths(&two, Some(dir.join(CRL_FILE))), today_s()).expect("an identity");
    assert_eq!(identity.check(&chain(&one)), Err(Distrust::Revoked));
}

#[test]
fn an_identity_that_is_revoked_or_has_a_list_of_another_ca_is_refused() {
    let (ca, other) = (ca_today(), ca_today());
    let issued = issued_today(&ca, &[]);
    let foreign = issued_today(&other, &[]);
    let list = revoke(other.dir.path(), &[foreign.eid], &[], today_s()).expect("revoked").file;
    let error = Identity::load_files(&ca.paths(&issued, Some(list)), today_s()).expect_err("refused");
    assert!(error.to_string().contains("not among the CAs"), "{error}");
    let own = revoke(ca.dir.path(), &[issued.eid], &[], today_s()).expect("revoked").file;
    let error = Identity::load_files(&ca.paths(&issued, Some(own)), today_s()).expect_err("refused");
    assert!(matches!(error, TlsError::Revoked(_)), "{error}");
    let no_list = Identity::load_files(&ca.paths(&issued, Some(issued.cert.clone())), today_s()).expect_err("refused");
    assert!(matches!(no_list, TlsError::Pem { what: "revocation list", .. }), "{no_list}");
}

#[test]
fn while_the_ca_is_changed_both_are_trusted_and_each_list_counts_for_its_own() {
    let (old, new) = (ca_today(), ca_today());
    let (of_old, of_new) = (issued_today(&old, &[]), issued_today(&new, &[]));
    let join = |name: &str, files: [PathBuf; 2]| {
        let both = old.dir.path().join(name);
        std::fs::write(&both, files.map(|file| std::fs::read(file).expect("a file")).concat()).expect("written");
        both
    };
    let (bad_old, bad_new) = (issued_today(&old, &[]), issued_today(&new, &[]));
    let lists = [
        revoke(old.dir.path(), &[bad_old.eid], &[], today_s()).expect("revoked").file,
        revoke(new.dir.path(), &[bad_new.eid], &[], today_s()).expect("revoked").file,
    ];
    let paths = IdentityFiles {
        ca: join("both-ca.pem", [old.file(), new.file()]),
        crl: Some(join("both-crl.pem", lists)),
        ..old.paths(&of_old, None)
    };
    let identity = Identity::load_files(&paths, today_s()).expect("an identity");
    for (good, bad) in [(&of_old, &bad_old), (&of_new, &bad_new)] {
        assert_eq!(identity.check(&chain(good)), Ok(()));
        assert_eq!(identity.check(&chain(bad)), Err(Distrust::Revoked));
    }
    let only_new = Identity::load_files(&new.paths(&of_new, None), today_s()).expect("an identity");
    assert_eq!(only_new.check(&chain(&of_old)), Err(Distrust::Ca));
}
