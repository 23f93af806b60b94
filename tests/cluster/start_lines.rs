//! What a start logs: who the member is, what differs from its data, what it skips, and what is open.

use crate::{
    ctl::{etcdctl, leader},
    support::Cluster,
};

/// The line of a log that contains `what`.
fn line<'l>(log: &'l str, what: &str) -> &'l str {
    let found = log.lines().find(|line| line.contains(what));
    found.unwrap_or_else(|| panic!("no line has {what:?}:\n{log}"))
}

#[tokio::test]
async fn a_start_says_which_member_it_is_and_what_differs_from_its_data() {
    let mut cluster = Cluster::new(1).await;
    let ports = cluster.ports();
    let member = &mut cluster.members[0];
    member.open_files = Some(600);
    member.start();
    leader(&ports).await;
    etcdctl(&ports, &["put", "k", "v"]).await.ok();
    let status = etcdctl(&ports, &["endpoint", "status", "-w", "json"]).await;
    let header = &status.json()[0]["Status"]["header"];
    let id = |name: &str| format!("{:x}", header[name].as_u64().expect("an id"));
    let member = &mut cluster.members[0];
    let log = member.log();
    let starting = line(&log, " starting ");
    for part in [
        format!("version=\"{}\"", env!("CARGO_PKG_VERSION")),
        format!("member=\"{}\"", id("member_id")),
        format!("cluster=\"{}\"", id("cluster_id")),
        "name=\"n1\"".to_owned(),
        "members=\"n1\"".to_owned(),
        "descriptors=\"600\"".to_owned(),
    ] {
        assert!(starting.contains(&part), "{part}: {starting}");
    }
    assert!(!log.contains("DEBUG"), "nobody asked for that: {log}");
    assert!(!log.contains("cluster.initial is ignored"), "{log}");
    member.stop().await;

    let known = member.log().len();
    let peer = format!("n1=127.0.0.1:{}", member.peer);
    let other = format!("{peer},n2=127.0.0.1:1");
    member.args.push(format!("--initial-cluster={other}"));
    member.args.push("--log-level=debug".to_owned());
    member.start();
    leader(&ports).await;
    let log = cluster.members[0].log()[known..].to_owned();
    let differs = line(&log, "cluster.initial is ignored");
    assert!(differs.contains(&format!("given=\"{other}\"")), "{differs}");
    assert!(differs.contains(&format!("stored=\"{peer}\"")), "{differs}");
    let data = line(&log, "its data");
    assert!(data.contains("DEBUG"), "{data}");
    assert!(data.contains("revision=2 records=1"), "{data}");
    cluster.members[0].stop().await;
}

#[tokio::test]
async fn a_start_says_which_variables_it_skips_and_that_a_port_is_open_to_all() {
    let mut cluster = Cluster::new(1).await;
    let ports = cluster.ports();
    let member = &mut cluster.members[0];
    member.set("QUORATE_CLIENT_SERVICE_HOST", "10.0.0.1");
    let listen = format!("0.0.0.0:{}", member.client);
    member.args.push(format!("--client-listen={listen}"));
    member.start();
    leader(&ports).await;
    let list = etcdctl(&ports, &["member", "list"]).await.ok();
    assert!(!list.contains("0.0.0.0"), "clients would get it: {list}");
    assert!(list.contains(&format!(":{}", ports[0])), "{list}");
    let log = cluster.members[0].log();
    let skipped = line(&log, "QUORATE_CLIENT_SERVICE_HOST");
    assert!(skipped.contains("is skipped"), "{skipped}");
    let open = line(&log, "open to everybody");
    assert!(open.contains(&listen), "{open}");
    cluster.members[0].stop().await;
}
