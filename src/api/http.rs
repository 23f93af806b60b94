//! The plain HTTP paths on the client port: `/version` and `/health`. Every other path gets 404.

use super::{
    Api, ETCD_CLUSTER_VERSION, ETCD_VERSION, maintenance::alarm_name, response_body::ResponseBody,
};
use crate::{kv::command::AlarmKind, types::MemberId};
use http::{
    HeaderName, HeaderValue, Method, Response, StatusCode, Uri,
    header::{ALLOW, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Answers a request that is not gRPC.
pub async fn answer(api: &Api, method: &Method, uri: &Uri) -> Response<ResponseBody> {
    match uri.path() {
        "/version" | "/health" if method != Method::GET => {
            let mut response = refusal(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed");
            response
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET"));
            response
        }
        "/version" => respond(StatusCode::OK, JSON, version()),
        "/health" => health(api, uri.query().unwrap_or_default()).await,
        _ => refusal(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

fn version() -> String {
    let (version, cluster) = (ETCD_VERSION, ETCD_CLUSTER_VERSION);
    format!(
        "{{\"etcdserver\":\"{version}\",\"etcdcluster\":\"{cluster}\",\"storage\":\"{cluster}\"}}"
    )
}

async fn health(api: &Api, query: &str) -> Response<ResponseBody> {
    match unhealthy_reason(api, &HealthQuery::parse(query)).await {
        None => respond(StatusCode::OK, TEXT, health_body(true, "")),
        Some(reason) => refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            &health_body(false, &reason),
        ),
    }
}

/// Why the member is unhealthy; `None` if it is healthy. etcd: it checks alarms first, then the leader, then does a read.
async fn unhealthy_reason(api: &Api, query: &HealthQuery<'_>) -> Option<String> {
    // Whoever asks: a probe has no user.
    let alarms = api.requests.published().alarms.clone();
    let own = api.requests.identity().member;
    // A member whose state differs is unhealthy; the members that found the difference are not.
    let mine =
        |(member, kind): &(MemberId, AlarmKind)| *kind != AlarmKind::StateDiffers || *member == own;
    let mut names = alarms
        .iter()
        .copied()
        .filter(mine)
        .map(|(_, kind)| alarm_name(kind));
    if let Some(name) = names.find(|name| !query.excluded.contains(name)) {
        return Some(format!("ALARM {name}"));
    }
    if !query.serializable && !api.requests.has_leader() {
        return Some("RAFT NO LEADER".to_owned());
    }
    let read = api.requests.probe(query.serializable).await;
    read.err()
        .map(|error| format!("RANGE ERROR:{}", super::status::Status::from(error).message))
}

/// What the query string of `/health` asks for.
#[derive(Debug, Default, PartialEq, Eq)]
struct HealthQuery<'a> {
    serializable: bool,
    excluded: Vec<&'a str>,
}

impl<'a> HealthQuery<'a> {
    fn parse(query: &'a str) -> Self {
        let mut parsed = Self::default();
        for pair in query.split('&') {
            match pair.split_once('=') {
                Some(("serializable", value)) => parsed.serializable = value == "true",
                Some(("exclude", alarm)) => parsed.excluded.push(alarm),
                Some(_) | None => {}
            }
        }
        parsed
    }
}

pub(super) fn health_body(healthy: bool, reason: &str) -> String {
    let reason = reason.replace('\\', "\\\\").replace('"', "\\\"");
    format!("{{\"health\":\"{healthy}\",\"reason\":\"{reason}\"}}")
}

/// An error in the form of Go's HTTP server: the text and a line end.
pub(super) fn refusal(status: StatusCode, text: &str) -> Response<ResponseBody> {
    let mut response = respond(status, TEXT, format!("{text}\n"));
    set(&mut response, X_CONTENT_TYPE_OPTIONS, "nosniff");
    response
}

fn respond(status: StatusCode, kind: &'static str, body: String) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::Plain(body.into()));
    *response.status_mut() = status;
    set(&mut response, CONTENT_TYPE, kind);
    response
}

fn set(response: &mut Response<ResponseBody>, name: HeaderName, value: &'static str) {
    response
        .headers_mut()
        .insert(name, HeaderValue::from_static(value));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_health_query_may_have_several_exclusions() {
        let parsed = HealthQuery::parse("exclude=NOSPACE&serializable=true&exclude=CORRUPT&x");
        let expected = HealthQuery {
            serializable: true,
            excluded: vec!["NOSPACE", "CORRUPT"],
        };
        assert_eq!(parsed, expected);
        assert_eq!(HealthQuery::parse("serializable=1"), HealthQuery::default());
    }

    #[test]
    fn bodies_are_etcds() {
        assert_eq!(health_body(true, ""), r#"{"health":"true","reason":""}"#);
        let quoted = health_body(false, r#"RANGE ERROR:"x""#);
        assert_eq!(quoted, r#"{"health":"false","reason":"RANGE ERROR:\"x\""}"#);
        let expected = r#"{"etcdserver":"3.7.3","etcdcluster":"3.7.0","storage":"3.7.0"}"#;
        assert_eq!(version(), expected);
    }
}
