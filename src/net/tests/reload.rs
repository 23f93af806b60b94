//! Certificates that change under a running member.

use super::members::{Authority, Member, run};
use crate::net::{PeerSecurity, TlsFiles, tls::TlsWatch};
use std::{fs, os::unix::fs::PermissionsExt};

/// Overwrites the files of `to` with those of `from`, the certificate last.
fn replace(to: &PeerSecurity, from: &PeerSecurity) {
    let (PeerSecurity::Files(to), PeerSecurity::Files(from)) = (to, from) else {
        panic!("both have files");
    };
    let parts = |files: &TlsFiles| [files.ca.clone(), files.key.clone(), files.cert.clone()];
    for (from, to) in parts(from).iter().zip(&parts(to)) {
        fs::copy(from, to).unwrap();
    }
}

#[test]
fn new_files_are_used_for_new_connections_and_bad_ones_are_not() {
    run(async {
        let (old, new) = (Authority::new(), Authority::new());
        let security = old.member("n1");
        let one = Member::start(1, security.clone());
        let two = Member::start(2, old.member("n2"));
        one.knows(&[&two]);
        two.knows(&[&one]);
        one.reaches(&two).await;

        // A bad file changes nothing: a member of the old authority still gets in.
        fs::write(old.path().join("n1.pem"), "no certificate").unwrap();
        let three = Member::start(3, old.member("n3"));
        one.knows(&[&two, &three]);
        three.knows(&[&one]);
        three.reaches(&one).await;

        // A member of the new authority is refused, until the new files are there.
        let four = Member::start(4, new.member("n4"));
        one.knows(&[&two, &three, &four]);
        four.knows(&[&one]);
        four.reports("UnknownIssuer").await;
        replace(&security, &new.member("n1"));
        four.reaches(&one).await;
        one.reaches(&four).await;

        // What was connected stays so.
        one.reaches(&two).await;
        assert_eq!(
            two.post.disconnected.get(),
            0,
            "the old connection was not touched"
        );
    });
}

#[test]
fn a_list_of_revoked_certificates_is_taken_up_when_it_changes() {
    run(async {
        let authority = Authority::new();
        let (first, second) = (authority.member("n3"), authority.member("n4"));
        let one = Member::start(1, authority.revoking(authority.member("n1"), &first));
        let two = Member::start(2, authority.member("n2"));
        one.knows(&[&two]);
        two.knows(&[&one]);
        one.reaches(&two).await;
        let three = Member::start(3, first);
        one.knows(&[&two, &three]);
        three.knows(&[&one]);
        three.reports("Revoked").await;

        // Another list: that this one gets in shows that the other is revoked now.
        fs::remove_file(authority.path().join("crl.pem")).unwrap();
        authority.revoking(authority.member("n1"), &second);
        three.reaches(&one).await;
        let four = Member::start(4, second);
        one.knows(&[&two, &three, &four]);
        four.knows(&[&one]);
        four.reports("Revoked").await;
        one.reaches(&two).await;
        assert_eq!(two.post.disconnected.get(), 0, "it stays connected");
    });
}

/// Only a start refused them.
#[test]
fn what_a_start_would_refuse_does_not_replace_what_is_in_force() {
    let authority = Authority::new();
    let of = |name: &str| match authority.member(name) {
        PeerSecurity::Files(files) => files,
        PeerSecurity::Insecure => panic!("it has files"),
    };
    let mut used = TlsFiles {
        cert: authority.path().join("used.pem"),
        key: authority.path().join("used-key.pem"),
        refuse_readable_keys: true,
        ..of("n1")
    };
    used.allowed.common_names = vec!["n1".to_owned(), "n2".to_owned()];
    let mut newlines = 0;
    let mut put = |name: &str| {
        let from = of(name);
        // Another length each time: the clock of a file system may stand still between two changes.
        newlines += 10;
        for (from, to) in [(&from.key, &used.key), (&from.cert, &used.cert)] {
            let text = fs::read_to_string(from).unwrap() + &"\n".repeat(newlines);
            fs::write(to, text).unwrap();
        }
    };
    let chmod = |mode| fs::set_permissions(&used.key, fs::Permissions::from_mode(mode)).unwrap();
    put("n1");
    chmod(0o600);
    let (security, name) = (PeerSecurity::Files(used.clone()), "n1".to_owned());
    let (mut watch, _) = TlsWatch::open(security, name, "127.0.0.1".to_owned()).unwrap();
    let mut look = || {
        assert!(watch.look().is_none(), "it may still be written");
        let read = watch.look().expect("a change");
        read.map(drop).map_err(|error| error.to_string())
    };
    let cert = format!("peer.cert: {}: ", used.cert.display());
    for (other, text) in [
        (
            "n2",
            "it is the certificate of \"quorate://member/n2\", not of member \"n1\"",
        ),
        ("n3", "other members refuse it: "),
    ] {
        put(other);
        let error = look().unwrap_err();
        assert!(error.starts_with(&cert) && error.contains(text), "{error}");
        put("n1");
        assert_eq!(look(), Ok(()));
    }
    // The key in force only gets a warning, so that what is beside it is used. A new one is refused.
    chmod(0o644);
    put("n1");
    assert_eq!(look(), Ok(()));
    let former = of("n1");
    for file in [former.cert, former.key] {
        fs::remove_file(file).unwrap();
    }
    put("n1");
    let error = look().unwrap_err();
    let key = format!("peer.key: {}: every user", used.key.display());
    assert!(error.starts_with(&key), "{error}");
    chmod(0o600);
    put("n1");
    assert_eq!(look(), Ok(()));
}
