//! A line as JSON.

use super::entry::{Entry, Shown, Target};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use std::{fmt::Write, time::Duration};
use time::OffsetDateTime;

/// A line, with its end.
pub(super) fn of(entry: &Entry, member: &str) -> String {
    let mut line = Object::begin(entry.at, member);
    line.number("id", entry.id);
    let (call, subject) = (&entry.call, &entry.subject);
    if let Some(user) = &call.user {
        line.text("user", user);
    }
    if let Some(cn) = &call.cn {
        line.text("cn", cn);
    }
    match call.peer {
        Some(peer) => line.text("peer", &peer.to_string()),
        None => line.text("peer", "unix"),
    }
    line.text("method", &call.method);
    if let Some(user) = &subject.target_user {
        line.bytes("target_user", user);
    }
    if subject.unknown_user {
        line.raw("unknown_user", "true");
    }
    if let Some(role) = &subject.role {
        line.bytes("role", role);
    }
    if let Some(permission) = subject.permission {
        line.text("permission", permission);
    }
    if let Some(range) = &subject.range {
        line.target(range);
    }
    if subject.lease != 0 {
        line.number("lease", subject.lease);
    }
    if subject.ttl != 0 {
        line.number("ttl", subject.ttl);
    }
    if let Some(txn) = &subject.txn {
        line.number("compares", txn.compares);
        line.ops(&txn.ops);
        if txn.ops_left_out > 0 {
            line.number("ops_left_out", txn.ops_left_out);
        }
    }
    if let Some((name, text)) = &subject.other {
        line.bytes(name, text);
    }
    line.text("code", entry.ended.code);
    if let Some(reason) = entry.ended.refused {
        line.text("refused", reason);
    }
    if entry.revision > 0 {
        line.number("revision", entry.revision);
    }
    line.number("duration_us", entry.duration.as_micros());
    line.end()
}

/// The line that says how many are missing.
pub(super) fn of_dropped(at: Duration, member: &str, lines: u64) -> String {
    let mut line = Object::begin(at, member);
    line.number("dropped", lines);
    line.end()
}

struct Object(String);

impl Object {
    fn begin(at: Duration, member: &str) -> Self {
        let mut line = Self(String::with_capacity(256));
        line.0.push('{');
        line.text("ts", &timestamp(at));
        line.text("member", member);
        line
    }

    fn end(mut self) -> String {
        self.0.push_str("}\n");
        self.0
    }

    fn name(&mut self, name: &str) {
        if !self.0.ends_with('{') {
            self.0.push(',');
        }
        self.quoted(name);
        self.0.push(':');
    }

    fn raw(&mut self, name: &str, json: &str) {
        self.name(name);
        self.0.push_str(json);
    }

    fn number(&mut self, name: &str, number: impl std::fmt::Display) {
        self.name(name);
        // Writing to a string does not fail.
        write!(self.0, "{number}").unwrap_or_default();
    }

    fn text(&mut self, name: &str, text: &str) {
        self.name(name);
        self.quoted(text);
    }

    fn quoted(&mut self, text: &str) {
        let json = serde_json::to_string(text);
        self.0.push_str(&json.unwrap_or_default());
    }

    fn bytes(&mut self, name: &str, shown: &Shown) {
        let whole = std::str::from_utf8(&shown.bytes);
        // A cut may go through a letter.
        let text = match whole {
            Ok(text) => Some(text),
            Err(error) if shown.len > shown.bytes.len() && error.error_len().is_none() => {
                std::str::from_utf8(&shown.bytes[..error.valid_up_to()]).ok()
            }
            Err(_) => None,
        };
        match text {
            Some(text) => self.text(name, text),
            None => self.text(&format!("{name}_base64"), &BASE64.encode(&shown.bytes)),
        }
        if shown.len > shown.bytes.len() {
            self.number(&format!("{name}_bytes"), shown.len);
        }
    }

    fn target(&mut self, target: &Target) {
        self.bytes("key", &target.key);
        if target.range_end.len > 0 {
            self.bytes("range_end", &target.range_end);
        }
    }

    fn ops(&mut self, ops: &[(&'static str, Target)]) {
        self.name("ops");
        self.0.push('[');
        for (op, target) in ops {
            if !self.0.ends_with('[') {
                self.0.push(',');
            }
            self.0.push('{');
            self.text("op", op);
            self.target(target);
            self.0.push('}');
        }
        self.0.push(']');
    }
}

/// RFC 3339, in UTC, with microseconds.
fn timestamp(since_1970: Duration) -> String {
    let secs = i64::try_from(since_1970.as_secs()).unwrap_or_default();
    let at = OffsetDateTime::from_unix_timestamp(secs).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
        at.year(),
        u8::from(at.month()),
        at.day(),
        at.hour(),
        at.minute(),
        at.second(),
        since_1970.subsec_micros(),
    )
}
