//! Users: turning authentication on, logging in, and the load of logins.

use super::{
    BenchError,
    args::Settings,
    channel::{CallError, Channel, Method},
    k8s::REGISTRY,
    load::{Operation, Workload, block_on},
    stats::Report,
    unary::Scratch,
    wire::{self, Fields},
};
use bytes::BytesMut;
use http::HeaderValue;

/// The role of the user that is added.
const ROLE: &str = "bench";

/// A name and a password.
#[derive(Clone, Debug)]
pub(super) struct User {
    pub(super) name: String,
    pub(super) password: String,
}

impl User {
    /// Reads `NAME:PASSWORD`, as etcdctl does.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (name, password) = text.split_once(':')?;
        (!name.is_empty()).then(|| Self {
            name: name.to_owned(),
            password: password.to_owned(),
        })
    }
}

/// The token that all calls carry, if there is a user.
pub(super) fn log_in(settings: &Settings) -> Result<Option<HeaderValue>, BenchError> {
    let Some(user) = &settings.user else {
        return Ok(None);
    };
    let token = block_on(async {
        let mut channel = Channel::connect(settings, 0).await?;
        Ok(authenticate(user, &mut channel).await?)
    })?;
    let value = HeaderValue::from_bytes(&token);
    let wrong = |_| CallError::Answer("a token that no header can have");
    Ok(Some(value.map_err(wrong)?))
}

async fn authenticate(user: &User, channel: &mut Channel) -> Result<Vec<u8>, CallError> {
    let request = wire::message(&mut BytesMut::new(), |b| {
        wire::texts(b, &[&user.name, &user.password]);
    });
    let reply = channel.unary(Method::Authenticate, request).await?;
    match Fields(&reply).bytes(2)? {
        [] => Err(CallError::Wrong("a login without a token".into())),
        token => Ok(token.to_vec()),
    }
}

/// Adds root and the user, who may read and write all keys of the prefix and of the k8s load, and turns authentication on.
pub(super) fn enable(settings: &Settings) -> Result<Report, BenchError> {
    let user = settings.user.as_ref();
    let user = user.expect("the settings were checked");
    let registry = REGISTRY.as_bytes();
    let ranges = [
        settings.all_keys(),
        (registry.to_vec(), wire::prefix_end(registry)),
    ];
    block_on(async {
        let mut channel = Channel::connect(settings, 0).await?;
        let calls: [(Method, &[&str]); 6] = [
            (Method::UserAdd, &["root", &user.password]),
            (Method::UserAdd, &[&user.name, &user.password]),
            (Method::RoleAdd, &["root"]),
            (Method::RoleAdd, &[ROLE]),
            (Method::UserGrantRole, &["root", "root"]),
            (Method::UserGrantRole, &[&user.name, ROLE]),
        ];
        let mut out = BytesMut::new();
        for (method, texts) in calls {
            let request = wire::message(&mut out, |b| wire::texts(b, texts));
            channel.unary(method, request).await?;
        }
        for (first, end) in &ranges {
            let request = wire::message(&mut out, |b| wire::grant(b, ROLE, first, end));
            channel.unary(Method::RoleGrantPermission, request).await?;
        }
        let request = wire::message(&mut out, |_| ());
        channel.unary(Method::AuthEnable, request).await?;
        Ok(Report::new("enable-auth"))
    })
}

/// Half of the clients log in, the others write random keys meanwhile.
#[derive(Clone, Copy, Debug)]
pub(super) struct Logins;

pub(super) enum LoginsClient {
    Logs(User),
    Puts(Box<Scratch>),
}

impl Workload for Logins {
    const KINDS: &'static [&'static str] = &["login", "put"];
    const HEADLINE: &'static [usize] = &[0];
    type Client = LoginsClient;

    async fn client(
        &self,
        settings: &Settings,
        index: usize,
        _: &mut Channel,
    ) -> Result<LoginsClient, CallError> {
        Ok(match &settings.user {
            Some(user) if index.is_multiple_of(2) => LoginsClient::Logs(user.clone()),
            Some(_) | None => LoginsClient::Puts(Box::new(Scratch::new(settings, index))),
        })
    }
}

impl Operation for LoginsClient {
    async fn perform(&mut self, channel: &mut Channel) -> Result<usize, CallError> {
        match self {
            Self::Logs(user) => {
                authenticate(user, channel).await?;
                Ok(0)
            }
            Self::Puts(scratch) => {
                scratch.any_key();
                scratch.put(channel).await?;
                Ok(1)
            }
        }
    }
}
