//! etcdctl's commands and flags, each run against a member and against a real etcd beside it: both say the same, but
//! for ids, ports and times.
//!
//! The commands run in order on the same state. What etcdctl refuses by itself is left out, and what `docs/compat.md` names.

use crate::support::{CtlOutput, Kind, Server, etcd_version, etcdctl, note};
use std::collections::BTreeMap;

/// A server, and what of its output is its own.
struct Side {
    server: Server,
    /// The member's id, as etcdctl takes it.
    member: String,
    /// What the other side has, too, under another value: the value here, and its name.
    own: BTreeMap<String, String>,
    /// Ids of the leases that were granted, in order.
    leases: Vec<String>,
}

impl Side {
    async fn start(kind: Kind) -> Self {
        let server = Server::start_kind(kind).await;
        let list = etcdctl(&server, &["member", "list", "-w", "json"], "")
            .await
            .json();
        let (member, cluster) = (&list["members"][0]["ID"], &list["header"]["cluster_id"]);
        let peer = list["members"][0]["peerURLs"][0].as_str().expect("a URL");
        let mut own = BTreeMap::from([
            (
                format!("127.0.0.1:{}", server.client_port()),
                "CLIENT".to_owned(),
            ),
            (peer.to_owned(), "PEER".to_owned()),
        ]);
        for (id, name) in [(member, "MEMBER"), (cluster, "CLUSTER")] {
            let id = id.as_u64().expect("an id");
            own.insert(id.to_string(), name.to_owned());
            own.insert(format!("{id:x}"), name.to_owned());
        }
        let id = member.as_u64().expect("an id");
        Self {
            server,
            member: format!("{id:x}"),
            own,
            leases: Vec::new(),
        }
    }

    /// Runs a command, in which `MEMBER` and `L0` stand for ids; gives its code and output in the words of both sides.
    async fn run(&mut self, args: &[&str], input: &str) -> (i32, String, String) {
        let own = |arg: &&str| {
            let mut arg = arg.replace("MEMBER", &self.member);
            for (n, lease) in self.leases.iter().enumerate() {
                arg = arg.replace(&format!("L{n}"), lease);
            }
            arg
        };
        let args: Vec<String> = args.iter().map(own).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let CtlOutput {
            code,
            stdout,
            stderr,
        } = etcdctl(&self.server, &args, input).await;
        if let Some(lease) = stdout.strip_prefix("lease ")
            && let Some((lease, _)) = lease.split_once(" granted")
        {
            let name = format!("LEASE-{}", self.leases.len());
            let number = u64::from_str_radix(lease, 16).expect("an id");
            self.own.insert(lease.to_owned(), name.clone());
            self.own.insert(number.to_string(), name);
            self.leases.push(lease.to_owned());
        }
        // Its warnings have times and addresses; the last line says what the caller is told.
        let error = stderr.lines().filter(|line| !line.starts_with('{'));
        let error: Vec<_> = error.collect();
        (code, self.shared(&stdout), self.shared(&error.join("\n")))
    }

    /// Text without what differs from side to side.
    fn shared(&self, text: &str) -> String {
        let mut text = text.to_owned();
        // Longer ones first: one may be the beginning of another.
        let mut own: Vec<_> = self.own.iter().collect();
        own.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
        for (value, name) in own {
            text = text.replace(value.as_str(), name);
        }
        let after = [
            "took = ",
            "\"took\":\"",
            "\"raft_term\":",
            "\"RaftTerm\" : ",
        ];
        for before in after {
            text = without_word_after(&text, before);
        }
        text
    }
}

/// Cuts out the word (letters, digits and dots) after each place where `before` stands.
fn without_word_after(text: &str, before: &str) -> String {
    let mut parts = text.split(before);
    let mut kept = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        kept.push_str(before);
        let in_word = |letter: char| letter.is_alphanumeric() || letter == '.';
        kept.push_str(part.trim_start_matches(in_word));
    }
    kept
}

/// Runs all commands, each a line of words; words with spaces are in `more`.
async fn same(lines: &str, more: &[(&[&str], &str)]) {
    if etcd_version() < (3, 7) {
        note("not compared: the commands of an etcdctl before 3.7");
        return;
    }
    let (mut ours, mut theirs) = (
        Side::start(Kind::Quorate).await,
        Side::start(Kind::Etcd).await,
    );
    let lines = lines.lines().map(str::trim).filter(|line| !line.is_empty());
    let lines = lines.map(|line| (line.split(' ').collect::<Vec<_>>(), ""));
    let more = more.iter().map(|(args, input)| (args.to_vec(), *input));
    for (args, input) in lines.chain(more) {
        let expected = theirs.run(&args, input).await;
        assert_eq!(ours.run(&args, input).await, expected, "{args:?} {input:?}");
    }
}

#[tokio::test]
async fn reads_and_writes_in_every_output() {
    let commands = "
        put a 1
        put a 2 --prev-kv
        put a/b x
        put b z
        get a
        get a --prefix
        get absent
        get a --prefix --count-only
        get a --prefix --keys-only
        del b --prev-kv
        del absent
        lease list";
    let formats = ["simple", "json", "fields", "table"];
    let lines: Vec<_> = formats
        .iter()
        .flat_map(|format| {
            commands
                .lines()
                .map(move |line| format!("{line} -w {format}"))
        })
        .filter(|line| !line.starts_with(" -w"))
        .collect();
    same(&lines.join("\n"), &[]).await;
}

#[tokio::test]
async fn ranges_with_every_flag() {
    let mut lines = vec![
        "put a 3\nput a/b 1\nput a/c 2\nput b 9\nput a/c 4\ndel b\nput z 1\nget a z\nget b a -w json".to_owned(),
    ];
    for value in [
        "0",
        "1",
        "4",
        "-1",
        "-5",
        "99999",
        "9223372036854775807",
        "-9223372036854775808",
    ] {
        for flag in [
            "rev",
            "limit",
            "min-create-rev",
            "max-create-rev",
            "min-mod-rev",
            "max-mod-rev",
        ] {
            lines.push(format!("get a --prefix --{flag}={value} -w json"));
            lines.push(format!("get a --prefix --{flag}={value} --stream -w json"));
        }
    }
    for order in ["ASCEND", "DESCEND"] {
        for target in ["CREATE", "KEY", "MODIFY", "VALUE", "VERSION"] {
            let sorted = format!("get a --prefix --order={order} --sort-by={target} -w json");
            lines.push(format!("{sorted} --limit=2"));
            lines.push(format!("{sorted} --stream"));
            lines.push(sorted);
        }
    }
    lines.push(
        "get a --consistency=s
        get a --consistency=s --rev=3
        get a --prefix --print-value-only
        get a --prefix --hex
        get a --stream --count-only -w json
        get a --prefix --stream --keys-only -w json"
            .to_owned(),
    );
    same(&lines.join("\n"), &[]).await;
}

#[tokio::test]
async fn odd_keys_and_refused_writes() {
    let lines = "
        put a 1
        put a --ignore-value
        put absent --ignore-value
        put absent v --ignore-lease
        put a v --ignore-lease --lease=1
        put a v --lease=1
        put a v --lease=-1
        get a -w json
        put -- -k -v
        get -- -k
        del a --from-key --prev-kv
        compaction 3
        compaction 3
        compaction 0
        compaction 99999
        compaction 4 --physical -w json
        get a --rev=2
        get a --rev=2 --stream
        member remove 1
        member update 1 --peer-urls=http://127.0.0.1:9
        member promote 1
        member promote MEMBER
        member remove MEMBER
        move-leader 1
        endpoint health
        endpoint health --cluster
        endpoint hashkv
        endpoint hashkv --rev=-1
        endpoint hashkv --rev=99999
        alarm list
        alarm disarm -w json
        auth status -w json
        user list -w json
        role list -w json
        get a --user root:x";
    let more: [(&[&str], &str); 8] = [
        (&["put", "", "x"], ""),
        (&["get", ""], ""),
        (&["del", ""], ""),
        (&["get", "", "--from-key", "--keys-only"], ""),
        (&["put", "stdin"], "from stdin\n"),
        (&["put", "k\nl", "v\nw"], ""),
        (&["get", "k\nl", "--hex"], ""),
        (&["get", "stdin", "-w", "json"], ""),
    ];
    same(lines, &more).await;
}

#[tokio::test]
async fn leases_and_transactions() {
    let lines = "
        put a 1
        lease grant 600
        lease grant 9000000001
        put l v --lease=L0
        get l -w json
        lease timetolive 1
        lease timetolive 1 --keys -w fields
        lease list -w json
        lease keep-alive --once L0
        lease keep-alive --once L0 -w json
        lease keep-alive --once 1
        put l --ignore-value --lease=0
        get l -w json
        lease revoke L0 -w json
        lease revoke L0
        lease revoke 0
        lock name echo held";
    let many = |count: usize| {
        let puts: Vec<String> = (0..count).map(|n| format!("put m{n} {n}\n")).collect();
        let puts = puts.concat();
        format!("\n{puts}\n\n")
    };
    let (full, too_many) = (many(128), many(129));
    let more: [(&[&str], &str); 11] = [
        (
            &["txn"],
            "value(\"a\") = \"1\"\n\nput a 2\nget a\n\nput a 3\n\n",
        ),
        (&["txn"], "value(\"a\") = \"1\"\n\nput a 2\n\nget a\n\n"),
        (
            &["txn", "-w", "json"],
            "mod(\"a\") > \"0\"\n\nget a --prefix\ndel a\nput q 1 --prev-kv\n\n\n",
        ),
        (
            &["txn", "-w", "fields"],
            "value(\"q\") != \"1\"\n\nput a 9\n\ndel q --prev-kv\n\n",
        ),
        (&["txn"], "\nput a 1\nput a 2\n\n\n"),
        (&["txn"], "\nput a 1\ndel a\n\n\n"),
        (&["txn"], "\nget a --rev=99999\n\n\n"),
        (&["txn"], "\nput x --ignore-value\n\n\n"),
        (&["txn"], "\nput x y --lease=1\n\n\n"),
        (&["txn"], &full),
        (&["txn"], &too_many),
    ];
    same(lines, &more).await;
}
