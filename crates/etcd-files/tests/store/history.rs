//! Histories that a seed generates: puts, deletions, transactions, leases, compactions, users, roles, alarms.

use crate::etcd::{Etcd, base64};
use serde_json::{Value, json};

/// Splitmix64.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }
}

/// One that goes on.
pub(crate) struct History<'a> {
    etcd: &'a Etcd<'a>,
    random: Random,
    leases: Vec<i64>,
    pub(crate) revision: i64,
    pub(crate) compacted: i64,
}

impl<'a> History<'a> {
    pub(crate) fn new(etcd: &'a Etcd<'a>, seed: u64) -> Self {
        Self {
            etcd,
            random: Random(seed),
            leases: Vec::new(),
            revision: 1,
            compacted: 0,
        }
    }

    /// Runs requests, some of which fail, and in the end perhaps an alarm and authentication.
    pub(crate) fn run(&mut self, requests: u64) {
        for _ in 0..requests {
            match self.random.below(100) {
                0..=39 => self.put(),
                40..=49 => self.delete(),
                50..=62 => self.transaction(),
                63..=69 => self.grant(),
                70..=72 => self.revoke(),
                73..=76 => self.compact(),
                _ => self.change_users(),
            }
        }
        assert!(
            self.revision > i64::try_from(requests / 3).unwrap(),
            "most requests succeed"
        );
        if self.random.one_in(3) {
            self.raise_alarms();
        }
        if self.random.one_in(2) {
            self.enable_auth();
        }
    }

    fn post(&mut self, path: &str, request: &Value) -> Option<Value> {
        let answer = self.etcd.post(path, request).ok()?;
        let revision = answer["header"]["revision"].as_str();
        if let Some(revision) = revision.and_then(|text| text.parse().ok()) {
            self.revision = revision;
        }
        Some(answer)
    }

    fn key(&mut self) -> Vec<u8> {
        match self.random.below(14) {
            0 => vec![0],
            1 => vec![0xff, 0, 0x80],
            2 => vec![b'L'; 700],
            number => format!("key/{number:02}").into_bytes(),
        }
    }

    fn value(&mut self) -> Vec<u8> {
        let bytes = match self.random.below(30) {
            0 => 20_000,
            1..=3 => 3_000,
            4..=8 => 0,
            number => number * 7,
        };
        (0..bytes)
            .map(|_| self.random.next().to_le_bytes()[0])
            .collect()
    }

    fn put_request(&mut self, key: &[u8]) -> Value {
        let value = self.value();
        let nth = self.random.below(8);
        let lease = usize::try_from(nth)
            .ok()
            .and_then(|nth| self.leases.get(nth));
        let lease = lease.copied().unwrap_or(0).to_string();
        json!({"key": base64(key), "value": base64(&value), "lease": lease})
    }

    fn put(&mut self) {
        let key = self.key();
        let request = self.put_request(&key);
        self.post("kv/put", &request);
    }

    fn delete_request(&mut self) -> Value {
        let key = self.key();
        if self.random.one_in(6) {
            let mut end = key.clone();
            end.push(b'~');
            end.push(b'~');
            let end = if self.random.one_in(4) { vec![0] } else { end };
            json!({"key": base64(&key), "range_end": base64(&end)})
        } else {
            json!({"key": base64(&key)})
        }
    }

    fn delete(&mut self) {
        let request = self.delete_request();
        self.post("kv/deleterange", &request);
    }

    fn transaction(&mut self) {
        let mut operations = Vec::new();
        for _ in 0..=self.random.below(5) {
            let key = self.key();
            let put = json!({"request_put": self.put_request(&key)});
            let delete = json!({"request_delete_range": self.delete_request()});
            operations.push(match self.random.below(6) {
                0..=2 => put,
                3 | 4 => delete,
                // A put and a deletion in one transaction, perhaps of the same key.
                _ => json!({"request_txn": {"success": [put]}}),
            });
        }
        self.post("kv/txn", &json!({"success": operations}));
    }

    fn grant(&mut self) {
        // Both signs, as clients can choose.
        let id = self.random.next().cast_signed() >> self.random.below(60);
        let seconds = 5_000 + self.random.below(100_000);
        let request = json!({"ID": id.to_string(), "TTL": seconds.to_string()});
        if self.post("lease/grant", &request).is_some() && id != 0 {
            self.leases.push(id);
        }
    }

    fn revoke(&mut self) {
        if self.leases.is_empty() {
            return;
        }
        let nth = self.random.below(self.leases.len() as u64);
        let id = self.leases.swap_remove(usize::try_from(nth).unwrap());
        self.post("lease/revoke", &json!({"ID": id.to_string()}));
    }

    fn compact(&mut self) {
        let behind = self.random.below(8).cast_signed();
        let revision = (self.revision - behind).max(1);
        let physical = !self.random.one_in(4);
        let request = json!({"revision": revision.to_string(), "physical": physical});
        if self.post("kv/compaction", &request).is_some() {
            self.compacted = revision;
        }
    }

    fn change_users(&mut self) {
        let [user, role] = ["user", "role"].map(|name| format!("{name}{}", self.random.below(3)));
        let key = self.key();
        let end = [key.as_slice(), b"~"].concat();
        let end = if self.random.one_in(2) {
            base64(&end)
        } else {
            String::new()
        };
        let key = base64(&key);
        let kind = ["READ", "WRITE", "READWRITE"][usize::try_from(self.random.below(3)).unwrap()];
        let (path, request) = match self.random.below(12) {
            0 | 1 => ("user/add", json!({"name": user, "password": "secret"})),
            2 => (
                "user/add",
                json!({"name": user, "options": {"no_password": true}}),
            ),
            3 => ("user/delete", json!({"name": user})),
            4 => ("user/changepw", json!({"name": user, "password": "other"})),
            5 | 6 => ("user/grant", json!({"user": user, "role": role})),
            7 | 8 => ("role/add", json!({"name": role})),
            9 | 10 => {
                let permission = json!({"permType": kind, "key": key, "range_end": end});
                ("role/grant", json!({"name": role, "perm": permission}))
            }
            _ => ("role/revoke", json!({"role": role, "key": key})),
        };
        self.post(&format!("auth/{path}"), &request);
    }

    fn raise_alarms(&mut self) {
        for member in [7, 1_u64 << 63] {
            let alarm =
                json!({"action": "ACTIVATE", "memberID": member.to_string(), "alarm": "NOSPACE"});
            self.etcd.ask("maintenance/alarm", &alarm);
        }
    }

    fn enable_auth(&mut self) {
        for (path, request) in [
            ("user/add", json!({"name": "root", "password": "secret"})),
            ("role/add", json!({"name": "root"})),
            ("user/grant", json!({"user": "root", "role": "root"})),
            ("enable", json!({})),
        ] {
            self.etcd.ask(&format!("auth/{path}"), &request);
        }
        self.etcd.log_in();
    }
}

/// What an etcd answers about all that it stores.
pub(crate) fn answers(etcd: &Etcd<'_>, oldest: i64) -> Value {
    let all = json!({"key": base64(&[0]), "range_end": base64(&[0])});
    let mut old = all.clone();
    old["revision"] = oldest.to_string().into();
    let names = |kind: &str| {
        let list = etcd.ask(&format!("auth/{kind}/list"), &json!({}));
        let names = list[format!("{kind}s")]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let argument = if kind == "user" { "name" } else { "role" };
        let get = |name: Value| {
            let found = etcd.ask(&format!("auth/{kind}/get"), &json!({argument: name}));
            json!([name, found])
        };
        // What the role `root` may do is not stored, and versions differ in whether they say it.
        let names = names
            .into_iter()
            .filter(|name| kind == "user" || name != "root");
        names.map(get).collect::<Vec<_>>()
    };
    let (users, roles) = (names("user"), names("role"));
    let alarms = etcd.ask("maintenance/alarm", &json!({}));
    let mut alarms = alarms["alarms"].as_array().cloned().unwrap_or_default();
    // etcd lists them in the order of a map of Go.
    alarms.sort_by_key(Value::to_string);
    let mut answers = json!({
        "keys": etcd.ask("kv/range", &all),
        "old keys": etcd.ask("kv/range", &old),
        "hash": etcd.ask_if_there("maintenance/hashkv"),
        "leases": leases(etcd),
        "alarms": alarms,
        "auth": etcd.ask_if_there("auth/status"),
        "users": users,
        "roles": roles,
    });
    drop_defaults(&mut answers);
    answers
}

/// Removes what some versions of the gateway leave out.
fn drop_defaults(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.retain(|_, field| !["", "0", "READ"].iter().any(|default| field == default));
        fields.values_mut().for_each(drop_defaults);
    } else if let Value::Array(values) = value {
        values.iter_mut().for_each(drop_defaults);
    }
}

fn leases(etcd: &Etcd<'_>) -> Value {
    let list = etcd.ask("lease/leases", &json!({}));
    let mut leases = Vec::new();
    for lease in list["leases"].as_array().into_iter().flatten() {
        let request = json!({"ID": lease["ID"], "keys": true});
        let mut lease = etcd.ask("lease/timetolive", &request);
        // What is left of it differs.
        lease["TTL"].take();
        let mut keys = lease["keys"].as_array().cloned().unwrap_or_default();
        keys.sort_by_key(Value::to_string);
        lease["keys"] = keys.into();
        leases.push(lease);
    }
    leases.sort_by_key(Value::to_string);
    leases.into()
}
