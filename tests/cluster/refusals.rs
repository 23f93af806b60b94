//! Members that must not start do not, and log why.

use crate::{
    ctl::{eventually, leader},
    snapshot::said,
    support::{Cluster, quorate},
};
use std::fs;

#[tokio::test]
async fn several_members_need_certificates_or_to_be_told_that_they_do_not() {
    let initial = "n1=127.0.0.1:1,n2=127.0.0.1:2";
    let run = quorate()
        .args(["--name", "n1", "--initial-cluster", initial])
        .output();
    let run = run.await.expect("the program starts");
    let text = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(!run.status.success(), "{text}");
    assert!(
        text.contains("certificates") && text.contains("--peer-insecure"),
        "{text}"
    );
    let twice = "n1=127.0.0.1:1,n1=127.0.0.1:2";
    let mut run = quorate();
    run.args([
        "--name",
        "n1",
        "--peer-insecure",
        "--initial-cluster",
        twice,
    ]);
    let run = run.output().await.expect("the program starts");
    let text = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(text.contains("each name and each address once"), "{text}");
}

#[tokio::test]
async fn a_data_directory_of_another_member_is_refused() {
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    cluster.members[2].kill().await;
    cluster.members[1].kill().await;
    let (theirs, own) = (cluster.members[1].data_dir(), cluster.members[2].data_dir());
    fs::remove_dir_all(&own).expect("the directory goes");
    fs::rename(theirs, own).expect("the directory moves");
    let log = cluster.members[2].refusal().await;
    assert!(
        log.contains("belongs to member \"n2\", not to \"n3\""),
        "{log}"
    );
    assert_eq!(ports.len(), 3);
}

#[tokio::test]
async fn a_member_that_lost_its_data_directory_is_not_started_anew() {
    let mut cluster = Cluster::start(3).await;
    let ports = cluster.ports();
    let all = |list: &str| cluster.all_listed(list);
    eventually(&ports, &["member", "list"], all).await;
    cluster.members[2].kill().await;
    fs::remove_dir_all(cluster.members[2].data_dir()).expect("the directory goes");
    let log = cluster.members[2].refusal().await;
    assert!(
        log.contains("has been part of this cluster already"),
        "{log}"
    );
    leader(&ports[..2]).await;
}

#[tokio::test]
async fn who_was_not_added_cannot_join() {
    let mut cluster = Cluster::start(3).await;
    let at = cluster.prepare("n4").await;
    let initial = cluster.initial();
    let stranger = &mut cluster.members[at];
    stranger.args.push(format!("--initial-cluster={initial}"));
    stranger
        .args
        .push("--initial-cluster-state=existing".to_owned());
    let log = stranger.refusal().await;
    assert!(log.contains("etcdctl member add n4"), "{log}");
}

#[tokio::test]
async fn members_of_another_cluster_are_no_part_of_this_one() {
    const OTHER: &str = "--initial-cluster-token=other";
    const SAID: &str = "belongs to another cluster";
    let mut cluster = Cluster::new(3).await;
    cluster.members[2].args.push(OTHER.to_owned());
    for member in &mut cluster.members {
        member.start();
    }
    for member in &cluster.members {
        said(member, SAID, 1).await;
    }
    let ports = cluster.ports();
    let third = &mut cluster.members[2];
    third.kill().await;
    third.args.retain(|arg| arg != OTHER);
    third.start();
    leader(&ports).await;

    // It lost its disk, and comes back with another configuration: it waits, and the cluster goes on.
    third.kill().await;
    fs::remove_dir_all(third.data_dir()).expect("its disk is lost");
    let before = third.log().matches(SAID).count();
    third.args.push(OTHER.to_owned());
    third.start();
    said(third, SAID, before + 1).await;
    eventually(&ports[..1], &["put", "k", "v"], |_| true).await;
}
