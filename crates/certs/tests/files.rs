//! Folders of certificates as they lie on a disk.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use mcl_certs::{CA_KEY_FILE, CertsError, Wanted, init, issue};
use mcl_transport::{CA_FILE, CERT_FILE, Certificate, HolderName, Identity, KEY_FILE, Role};
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::SystemTime;

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn wanted(name: &str) -> Wanted {
    Wanted { name: Some(name.parse().unwrap()), ..Wanted::new(Role::Worker, 30) }
}

#[test]
fn keys_are_their_owners_alone_and_nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("certs");
    let made = init(&folder, "a cluster", 100, false).unwrap();
    assert!(made.authority && made.subject.contains("a cluster"), "{made:?}");
    assert_eq!(
        (mode(&folder), mode(&folder.join(CA_KEY_FILE)), mode(&folder.join(CA_FILE))),
        (0o700, 0o600, 0o644)
    );
    let (place, certificate) = issue(&folder, "w1", &wanted("w1"), false).unwrap();
    assert_eq!(place, folder.join("w1"));
    assert_eq!((mode(&place), mode(&place.join(KEY_FILE))), (0o700, 0o600));
    assert_eq!(certificate.holder.roles, BTreeSet::from([Role::Worker]));
    assert_eq!(certificate.holder.name.as_ref().map(HolderName::as_str), Some("w1"));
    assert!(certificate.hosts.is_empty() && !certificate.authority);
    assert_eq!(certificate.days_left(SystemTime::now()), 30);

    let before = std::fs::read(place.join(KEY_FILE)).unwrap();
    assert!(matches!(init(&folder, "x", 100, false), Err(CertsError::Exists { .. })));
    assert!(matches!(issue(&folder, "w1", &wanted("w1"), false), Err(CertsError::Exists { .. })));
    assert_eq!(std::fs::read(place.join(KEY_FILE)).unwrap(), before);
    issue(&folder, "w1", &wanted("w1"), true).unwrap();
    assert_ne!(std::fs::read(place.join(KEY_FILE)).unwrap(), before);
    assert_eq!(mode(&place.join(KEY_FILE)), 0o600);
    // Only what belongs there is left.
    let mut names: Vec<_> = std::fs::read_dir(&place).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, [CA_FILE, CERT_FILE, KEY_FILE]);
}

#[test]
fn a_service_is_for_its_hosts_and_several_roles_are_one_certificate() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), "a", 100, false).unwrap();
    let roles = BTreeSet::from([Role::Service, Role::Operator]);
    let hosts = vec!["head.example".to_owned(), "10.0.0.1".to_owned(), "2001:db8::1".to_owned()];
    let both = Wanted { roles: roles.clone(), hosts, ..Wanted::new(Role::Service, 30) };
    let (_, certificate) = issue(dir.path(), "head", &both, false).unwrap();
    assert_eq!((certificate.holder.roles, certificate.holder.name), (roles, None));
    let expected = ["localhost", "127.0.0.1", "::1", "head.example", "10.0.0.1", "2001:db8::1"];
    assert_eq!(certificate.hosts, expected);
    let bad = Wanted { hosts: vec!["not a host \u{fc}".to_owned()], ..both };
    assert!(matches!(issue(dir.path(), "bad", &bad, false), Err(CertsError::Wanted(_))));
    assert!(!dir.path().join("bad").exists());
}

#[test]
fn a_new_authority_joins_the_one_before_in_what_is_trusted() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), "old", 100, false).unwrap();
    let (place, _) = issue(dir.path(), "w1", &wanted("w1"), false).unwrap();
    init(dir.path(), "new", 100, true).unwrap();
    issue(dir.path(), "w1", &wanted("w1"), true).unwrap();
    let trusted = Certificate::read_pem(&std::fs::read(place.join(CA_FILE)).unwrap()).unwrap();
    let subjects: Vec<_> = trusted.iter().map(|c| c.subject.as_str()).collect();
    assert_eq!(subjects, ["CN=new", "CN=old"]);
    issue(dir.path(), "w1", &wanted("w1"), true).unwrap();
    assert_eq!(Certificate::read_pem(&std::fs::read(place.join(CA_FILE)).unwrap()).unwrap().len(), 2);
    Identity::open(&place).unwrap();
}

#[test]
fn what_cannot_be_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let none = issue(dir.path(), "w1", &wanted("w1"), false).unwrap_err().to_string();
    assert!(none.contains(CA_FILE), "{none}");
    init(dir.path(), "a", 100, false).unwrap();
    let long = Wanted { days: 101, ..wanted("w1") };
    let said = issue(dir.path(), "w1", &long, false).unwrap_err().to_string();
    assert!(said.contains("outlive its authority"), "{said}");
    std::fs::write(dir.path().join(CA_KEY_FILE), "nothing").unwrap();
    assert!(matches!(issue(dir.path(), "w1", &wanted("w1"), false), Err(CertsError::Authority { .. })));
    assert!(!dir.path().join("w1").exists());
    for bad in ["", "..", "a/b", "/a", "a\\b", "a\0", ".a", "\u{430}", "\u{ff0e}\u{ff0e}", &"x".repeat(65)] {
        assert!(bad.parse::<HolderName>().is_err(), "{bad:?}");
    }
}
