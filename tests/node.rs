//! A node inside this process, through its typed requests.
use quorate::{Config, Node, kv::command::*, types::Revision};

#[tokio::test]
async fn put_get_restart() {
    let dir = tempfile::tempdir().unwrap();
    let config = Config {
        data_dir: dir.path().join("data"),
        ..Config::default()
    };
    let node = Node::start(&config).unwrap();
    for n in 0..1000 {
        let put = Put {
            key: format!("k{}", n % 10).into(),
            value: format!("v{n}").into(),
            ..Put::default()
        };
        let done = node.requests().put(put).await.unwrap();
        assert_eq!(done.revision, Revision(n + 2));
    }
    let q = RangeQuery {
        key: "k".into(),
        range_end: "l".into(),
        ..RangeQuery::default()
    };
    let done = node.requests().range(q.clone()).await.unwrap();
    assert_eq!(done.count, 10);
    assert_eq!(done.revision, Revision(1001));
    node.stop().await;
    let node = Node::start(&config).unwrap();
    assert_eq!(node.requests().range(q).await.unwrap(), done);
    node.requests().compact(Revision(900), true).await.unwrap();
    node.stop().await;
}
