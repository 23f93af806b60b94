//! Certificates that change under a running member.

use super::members::{Authority, Member, run};
use crate::net::{PeerSecurity, TlsFiles};

/// Overwrites the files of `to` with those of `from`, the certificate last.
fn replace(to: &PeerSecurity, from: &PeerSecurity) {
    let (PeerSecurity::Files(to), PeerSecurity::Files(from)) = (to, from) else {
        panic!("both have files");
    };
    let parts = |files: &TlsFiles| [files.ca.clone(), files.key.clone(), files.cert.clone()];
    for (from, to) in parts(from).iter().zip(&parts(to)) {
        std::fs::copy(from, to).unwrap();
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
        std::fs::write(old.path().join("n1.pem"), "no certificate").unwrap();
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
