//! Certificates that name no member, as etcd's: whose they are follows from addresses, or from lists of names.

use super::members::{Authority, Member, run};
use crate::net::PeerSecurity;

fn with(security: PeerSecurity, names: &[&str], hosts: &[&str]) -> PeerSecurity {
    let PeerSecurity::Files(mut files) = security else {
        panic!("it has files");
    };
    let owned = |all: &[&str]| all.iter().map(|one| (*one).to_owned()).collect();
    files.allowed.common_names = owned(names);
    files.allowed.hosts = owned(hosts);
    PeerSecurity::Files(files)
}

#[test]
fn a_member_is_who_is_at_its_address() {
    run(async {
        let authority = Authority::new();
        let one = Member::start(1, authority.member("n1"));
        let two = Member::start(2, authority.foreign("peer", &["127.0.0.1"]));
        one.knows(&[&two]);
        two.knows(&[&one]);
        one.reaches(&two).await;
        two.reaches(&one).await;
        let elsewhere = Member::start(3, authority.foreign("elsewhere", &["10.0.0.3", "x"]));
        one.knows(&[&two, &elsewhere]);
        elsewhere.knows(&[&one]);
        elsewhere
            .reports("the certificate of member 3 names [\"x\"], not \"n3\"")
            .await;
    });
}

#[test]
fn a_list_of_names_lets_in_who_is_in_it_and_nobody_else() {
    run(async {
        let authority = Authority::new();
        let listed = |security| with(security, &["etcd"], &[]);
        let one = Member::start(1, listed(authority.foreign("etcd", &["10.0.0.1"])));
        let two = Member::start(2, listed(authority.foreign("etcd", &["10.0.0.2"])));
        one.knows(&[&two]);
        two.knows(&[&one]);
        one.reaches(&two).await;
        let other = Member::start(3, authority.member("n3"));
        one.knows(&[&two, &other]);
        other.knows(&[&one]);
        other.reports("invalid peer certificate").await;
    });
}

#[test]
fn a_list_of_hosts_lets_in_who_is_valid_for_one_and_nobody_else() {
    run(async {
        let authority = Authority::new();
        let listed = |security| with(security, &[], &["n1.example", "10.0.0.2"]);
        let one = Member::start(1, listed(authority.foreign("one", &["n1.example"])));
        let two = Member::start(2, listed(authority.foreign("two", &["10.0.0.2", "x"])));
        one.knows(&[&two]);
        two.knows(&[&one]);
        one.reaches(&two).await;
        two.reaches(&one).await;
        let other = Member::start(3, authority.foreign("other", &["127.0.0.1", "n3"]));
        one.knows(&[&two, &other]);
        other.knows(&[&one]);
        other.reports("invalid peer certificate").await;
        assert!(!other.post.is_up(), "it does not get in");
    });
}

#[test]
fn a_certificate_that_was_revoked_is_refused_on_both_sides() {
    run(async {
        let authority = Authority::new();
        let bad = authority.member("n2");
        let one = Member::start(1, authority.revoking(authority.member("n1"), &bad));
        let two = Member::start(2, bad);
        // Only one of them dials at a time.
        two.knows(&[&one]);
        two.reports("invalid peer certificate: Revoked").await;
        one.knows(&[&two]);
        one.reports("invalid peer certificate: Revoked").await;
    });
}
