//! The table that maps errors to gRPC codes and etcd's exact texts.
//!
//! Go clients recognise an error by its text, Java and Python clients by its code, so both are part of the API. This file has
//! every text that a client can receive as a gRPC status.

use crate::{
    actors::{
        etcd_image::ImageError, membership_change::ChangeRefusal, range_chunks::NotStreamable,
        requests::RequestError,
    },
    auth::AuthError,
    kv::KvError,
    services::{election::ElectionError, lock::LockError},
};
use std::borrow::Cow;

/// The beginning of the error for a message that cannot be decoded.
const MALFORMED: &str = "grpc: error unmarshalling request: ";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(face, expect(unnameable_types, reason = "a part of `Status`"))]
pub enum Code {
    /// The caller cancelled the call or left.
    Canceled = 1,
    /// No other code fits.
    Unknown = 2,
    /// The request is invalid in every state.
    InvalidArgument = 3,
    /// The deadline passed; the operation may still take effect.
    DeadlineExceeded = 4,
    /// Something that the request names does not exist.
    NotFound = 5,
    /// The user may not do this.
    PermissionDenied = 7,
    /// A size or a quota is exhausted.
    ResourceExhausted = 8,
    /// The current state does not allow the operation.
    FailedPrecondition = 9,
    /// The revision is outside what can be read.
    OutOfRange = 11,
    /// No such service or method.
    Unimplemented = 12,
    /// The message violates the protocol.
    Internal = 13,
    /// The member or the cluster cannot answer now.
    Unavailable = 14,
    /// The replicated state is damaged.
    DataLoss = 15,
    /// The credentials are not good.
    Unauthenticated = 16,
}

impl Code {
    /// gRPC's name of it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Canceled => "Canceled",
            Self::Unknown => "Unknown",
            Self::InvalidArgument => "InvalidArgument",
            Self::DeadlineExceeded => "DeadlineExceeded",
            Self::NotFound => "NotFound",
            Self::PermissionDenied => "PermissionDenied",
            Self::ResourceExhausted => "ResourceExhausted",
            Self::FailedPrecondition => "FailedPrecondition",
            Self::OutOfRange => "OutOfRange",
            Self::Unimplemented => "Unimplemented",
            Self::Internal => "Internal",
            Self::Unavailable => "Unavailable",
            Self::DataLoss => "DataLoss",
            Self::Unauthenticated => "Unauthenticated",
        }
    }
}

/// The error of a call, as the client receives it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code:?}: {message}")]
#[cfg_attr(
    face,
    expect(unnameable_types, reason = "only in a conversion to a type of tonic")
)]
pub struct Status {
    pub code: Code,
    /// etcd's text.
    pub message: Cow<'static, str>,
    /// Whether the name that is not found is the caller's: its text does not tell.
    is_of_caller: bool,
}

impl Status {
    /// For this file and for tests only: all texts are in this file.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            message: message.into(),
            is_of_caller: false,
        }
    }

    /// The text, if the call was refused because of its caller's credentials or rights. Locks and elections return that text with
    /// another code.
    pub(super) fn refusal(&self) -> Option<&'static str> {
        let texts = [
            AuthError::PermissionDenied,
            AuthError::InvalidToken,
            AuthError::UserEmpty,
            AuthError::OldRevision,
            AuthError::AuthenticationFailed,
            AuthError::NoPasswordUser,
            AuthError::TooManyFailedLogins,
        ]
        .map(|error| Self::from(error).message);
        if self.is_of_caller {
            return Some("user name not found");
        }
        let found = texts.into_iter().find_map(|text| match text {
            Cow::Borrowed(text) if self.message == text => Some(text),
            Cow::Borrowed(_) | Cow::Owned(_) => None,
        })?;
        Some(found.split_once(": ").map_or(found, |(_, reason)| reason))
    }

    /// The member is starting.
    pub fn not_started(waits_for: &str) -> Self {
        let text = format!("etcdserver: not started yet: {waits_for}");
        Self::new(Code::Unavailable, text)
    }

    /// A member without a vote refuses a call. etcd: up to 3.5 the code was another one. etcd's Go clients try their next
    /// endpoint only if code and text are those of their own version, which they send in each call.
    pub fn learner(client_version: Option<&[u8]>) -> Self {
        let of = |version: &[u8], minor: &[u8]| {
            let rest = version.strip_prefix(minor);
            rest.is_some_and(|rest| rest.first().is_none_or(|next| *next == b'.'))
        };
        let old = client_version.is_some_and(|it| of(it, b"3.4") || of(it, b"3.5"));
        match Self::from(RequestError::Learner) {
            status if old => Self::new(Code::Unavailable, status.message),
            status => status,
        }
    }

    /// The message on the wire is longer than the server receives.
    pub fn received_too_large(len: usize, max: usize) -> Self {
        let text = format!("grpc: received message larger than max ({len} vs. {max})");
        Self::new(Code::ResourceExhausted, text)
    }

    /// The response is longer than a gRPC message can be.
    pub fn sent_too_large(len: usize, max: usize) -> Self {
        let text = format!("grpc: trying to send message larger than max ({len} vs. {max})");
        Self::new(Code::ResourceExhausted, text)
    }

    /// Too many bytes of long answers wait for slow clients.
    pub fn answers_wait() -> Self {
        let text = "etcdserver: too many answers wait for their clients";
        Self::new(Code::ResourceExhausted, text)
    }

    /// The client takes too little of its snapshot.
    pub fn snapshot_not_taken() -> Self {
        let text = "etcdserver: the client takes its snapshot too slowly";
        Self::new(Code::ResourceExhausted, text)
    }

    /// A snapshot is not made, or ends early.
    pub(super) fn no_snapshot(error: ImageError) -> Self {
        let code = match error {
            ImageError::Request(error) => return error.into(),
            ImageError::Busy { max: _ } => Code::ResourceExhausted,
            ImageError::Thread(_)
            | ImageError::State(_)
            | ImageError::File(_)
            | ImageError::Unwanted
            | ImageError::OtherCompaction {
                found: _,
                expected: _,
            }
            | ImageError::Interrupted => Code::Internal,
        };
        Self::new(code, format!("etcdserver: {error}"))
    }

    /// The bytes cannot be decoded as a message of the expected type.
    pub fn malformed_message(error: &prost::DecodeError) -> Self {
        Self::new(Code::Internal, format!("{MALFORMED}{error}"))
    }

    /// The stream ended before a message began.
    pub fn no_message() -> Self {
        Self::new(Code::Unknown, "EOF")
    }

    /// The stream ended inside a message.
    pub fn cut_message() -> Self {
        Self::new(Code::Unknown, "unexpected EOF")
    }

    /// The same error as gRPC words it for a call that answers one message with a stream.
    pub(super) fn of_server_stream(self) -> Self {
        if self == Self::no_message() {
            let text =
                "cardinality violation: received no request message from non-client-streaming RPC";
            Self::new(Code::Internal, text)
        } else if self == Self::cut_message() {
            Self::new(Code::Internal, "unexpected EOF")
        } else if let Some(error) = self.message.strip_prefix(MALFORMED) {
            let text = format!("grpc: failed to unmarshal the received message: {error}");
            Self::new(self.code, text)
        } else {
            self
        }
    }

    /// The message is marked as compressed although no encoding was declared.
    pub fn unexpected_compression() -> Self {
        Self::new(
            Code::Internal,
            "grpc: compressed flag set with identity or empty encoding",
        )
    }

    /// The first byte of the message's prefix is neither 0 nor 1.
    pub fn unknown_format(format: u8) -> Self {
        Self::new(
            Code::Internal,
            format!("grpc: received unexpected payload format {format}"),
        )
    }

    /// The messages are compressed in a way that this server does not know.
    pub fn unknown_encoding(encoding: &str) -> Self {
        let text = format!("grpc: Decompressor is not installed for grpc-encoding \"{encoding}\"");
        Self::new(Code::Unimplemented, text)
    }

    /// The bytes of a compressed message are not what its encoding requires.
    pub fn malformed_compression(error: &std::io::Error) -> Self {
        let text = format!("grpc: failed to decompress the received message: {error}");
        Self::new(Code::Internal, text)
    }

    /// A compressed message is longer, once decompressed, than the server receives.
    pub fn decompressed_too_large(max: usize) -> Self {
        let text = format!("grpc: received message after decompression larger than max {max}");
        Self::new(Code::ResourceExhausted, text)
    }

    /// The headers of a call are longer than the server receives.
    pub fn metadata_too_large(len: usize, max: usize) -> Self {
        let text = format!("quorate: received metadata larger than max ({len} vs. {max})");
        Self::new(Code::ResourceExhausted, text)
    }

    /// The request's path is not `/service/method`.
    pub fn malformed_path(path: &str) -> Self {
        Self::new(
            Code::Unimplemented,
            format!("malformed method name: \"{path}\""),
        )
    }

    pub fn unknown_service(service: &str) -> Self {
        Self::new(Code::Unimplemented, format!("unknown service {service}"))
    }

    /// No such method of a known service.
    pub fn unknown_method(method: &str, service: &str) -> Self {
        let text = format!("unknown method {method} for service {service}");
        Self::new(Code::Unimplemented, text)
    }

    /// The `grpc-timeout` header cannot be read.
    pub fn malformed_timeout(value: &str) -> Self {
        Self::new(
            Code::Internal,
            format!("malformed grpc-timeout: \"{value}\""),
        )
    }

    /// The caller's deadline passed.
    pub fn deadline_exceeded() -> Self {
        Self::new(Code::DeadlineExceeded, "context deadline exceeded")
    }

    /// The caller left while it was sending.
    pub fn canceled() -> Self {
        Self::new(Code::Canceled, "context canceled")
    }

    /// The `client-api-version` metadata is not text.
    pub fn invalid_client_version() -> Self {
        Self::new(
            Code::InvalidArgument,
            "etcdserver: invalid client api version",
        )
    }

    /// The body of a response failed before its end.
    pub fn incomplete_response() -> Self {
        Self::new(Code::Internal, "the response is incomplete")
    }

    /// The health check names a service that has no health of its own.
    pub fn unknown_health_service() -> Self {
        Self::new(Code::NotFound, "unknown service")
    }
}

impl Status {
    /// The version of a downgrade is none.
    pub fn downgrade_format() -> Self {
        let text = "etcdserver: wrong downgrade target version format";
        Self::new(Code::InvalidArgument, text)
    }

    /// The version of a downgrade is not that of the release before.
    pub fn downgrade_target() -> Self {
        let text = "etcdserver: invalid downgrade target version";
        Self::new(Code::InvalidArgument, text)
    }

    /// A downgrade is asked for; Quorate has no older release of etcd to become.
    pub fn no_downgrade() -> Self {
        let text = "quorate: this is no etcd and cannot become an older one: to move to an etcd, restore the data there";
        Self::new(Code::FailedPrecondition, text)
    }

    /// etcd: an action of a downgrade that it does not know.
    pub fn unknown_downgrade_action() -> Self {
        Self::new(Code::Unknown, "etcdserver: unknown method")
    }

    /// An election call has no leader key.
    pub fn leader_key_missing() -> Self {
        Self::new(Code::Unknown, "\"leader\" field must be provided")
    }

    /// etcd: locks and elections use a client inside the server, so the errors that they return have lost their codes.
    fn without_code(error: RequestError) -> Self {
        Self {
            code: Code::Unknown,
            ..Self::from(error)
        }
    }
}

impl From<LockError> for Status {
    fn from(error: LockError) -> Self {
        match error {
            LockError::Request(error) => Self::without_code(error),
            LockError::SessionExpired => Self::new(Code::Unknown, "mutex: session is expired"),
        }
    }
}

impl From<ElectionError> for Status {
    fn from(error: ElectionError) -> Self {
        match error {
            ElectionError::Request(error) => Self::without_code(error),
            ElectionError::NoLeader => Self::new(Code::Unknown, "election: no leader"),
            ElectionError::NotLeader => Self::new(Code::Unknown, "election: not leader"),
        }
    }
}

impl From<AuthError> for Status {
    fn from(error: AuthError) -> Self {
        use Code::{FailedPrecondition, InvalidArgument, PermissionDenied, Unauthenticated};
        let (code, text) = match error {
            AuthError::RootUserMissing => {
                (FailedPrecondition, "etcdserver: root user does not exist")
            }
            AuthError::RootRoleMissing => (
                FailedPrecondition,
                "etcdserver: root user does not have root role",
            ),
            AuthError::UserExists => (FailedPrecondition, "etcdserver: user name already exists"),
            AuthError::UserEmpty => (InvalidArgument, "etcdserver: user name is empty"),
            AuthError::UserNotFound | AuthError::CallerNotFound => {
                (FailedPrecondition, "etcdserver: user name not found")
            }
            AuthError::RoleExists => (FailedPrecondition, "etcdserver: role name already exists"),
            AuthError::RoleEmpty => (InvalidArgument, "etcdserver: role name is empty"),
            AuthError::RoleNotFound => (FailedPrecondition, "etcdserver: role name not found"),
            AuthError::AuthenticationFailed => (
                InvalidArgument,
                "etcdserver: authentication failed, invalid user ID or password",
            ),
            // etcd: its table lacks these three.
            AuthError::NoPasswordUser => (
                Code::Unknown,
                "auth: authentication failed, password was given for no password user",
            ),
            AuthError::PasswordTooLong => {
                (Code::Unknown, "bcrypt: password length exceeds 72 bytes")
            }
            AuthError::PermissionNotGiven => (InvalidArgument, "etcdserver: permission not given"),
            AuthError::PermissionDenied => (PermissionDenied, "etcdserver: permission denied"),
            AuthError::RoleNotGranted => (
                FailedPrecondition,
                "etcdserver: role is not granted to the user",
            ),
            AuthError::PermissionNotGranted => (
                FailedPrecondition,
                "etcdserver: permission is not granted to the role",
            ),
            AuthError::NotEnabled => (
                FailedPrecondition,
                "etcdserver: authentication is not enabled",
            ),
            AuthError::InvalidToken => (Unauthenticated, "etcdserver: invalid auth token"),
            AuthError::InvalidManagement => {
                (InvalidArgument, "etcdserver: invalid auth management")
            }
            AuthError::VerifyOnly => (
                Code::Unknown,
                "auth: token signing attempted with verify-only key",
            ),
            AuthError::TooManyFailedLogins => (
                Code::ResourceExhausted,
                "etcdserver: too many failed logins, try again later",
            ),
            AuthError::OldRevision => {
                (InvalidArgument, "etcdserver: revision of auth store is old")
            }
        };
        Self {
            is_of_caller: error == AuthError::CallerNotFound,
            ..Self::new(code, text)
        }
    }
}

impl From<KvError> for Status {
    fn from(error: KvError) -> Self {
        let (code, text) = match error {
            KvError::EmptyKey => (Code::InvalidArgument, "etcdserver: key is not provided"),
            KvError::KeyNotFound => (Code::InvalidArgument, "etcdserver: key not found"),
            KvError::ValueProvided => (Code::InvalidArgument, "etcdserver: value is provided"),
            KvError::LeaseProvided => (Code::InvalidArgument, "etcdserver: lease is provided"),
            KvError::TooManyOps { max: _ } => (
                Code::InvalidArgument,
                "etcdserver: too many operations in txn request",
            ),
            KvError::DuplicateKey => (
                Code::InvalidArgument,
                "etcdserver: duplicate key given in txn request",
            ),
            KvError::InvalidSortOption => {
                (Code::InvalidArgument, "etcdserver: invalid sort option")
            }
            KvError::Compacted {
                asked: _,
                oldest: _,
            } => (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted",
            ),
            KvError::FutureRevision {
                asked: _,
                newest: _,
            } => (
                Code::OutOfRange,
                "etcdserver: mvcc: required revision is a future revision",
            ),
            KvError::NoSpace => (
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
            ),
            KvError::Corrupt => (Code::DataLoss, "etcdserver: corrupt cluster"),
            KvError::LeaseNotFound(_) => (Code::NotFound, "etcdserver: requested lease not found"),
            KvError::LeaseExists(_) => {
                (Code::FailedPrecondition, "etcdserver: lease already exists")
            }
            KvError::TooManyLeases { max: _ } => {
                (Code::ResourceExhausted, "etcdserver: too many leases")
            }
            KvError::LeaseTtlTooLarge {
                asked_secs: _,
                max_secs: _,
            } => (Code::OutOfRange, "etcdserver: too large lease TTL"),
            KvError::AnswerTooLarge { bytes_max: _ } => {
                (Code::ResourceExhausted, "etcdserver: answer is too large")
            }
            KvError::Auth(error) => return error.into(),
        };
        Self::new(code, text)
    }
}

impl From<NotStreamable> for Status {
    fn from(error: NotStreamable) -> Self {
        let text = match error {
            NotStreamable::SortOrder => "RangeStream does not support custom sort orders",
            NotStreamable::RevisionFilter => "RangeStream does not support revision filters",
        };
        Self::new(Code::Unimplemented, text)
    }
}

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Self {
        let (code, text) = match error {
            RequestError::Kv(error) => return error.into(),
            RequestError::TooLarge { bytes: _, max: _ } => {
                (Code::InvalidArgument, "etcdserver: request is too large")
            }
            RequestError::AnswerTooLarge { bytes_max: _ } => {
                (Code::ResourceExhausted, "etcdserver: answer is too large")
            }
            // etcd sends Unknown because its table lacks the error; clients can do more with the intended code.
            RequestError::TooManyRequests => {
                (Code::ResourceExhausted, "etcdserver: too many requests")
            }
            RequestError::TimedOut => (Code::Unavailable, "etcdserver: request timed out"),
            RequestError::TimedOutLeaderFailed => (
                Code::Unavailable,
                "etcdserver: request timed out, possibly due to previous leader failure",
            ),
            RequestError::TimedOutConnectionLost => (
                Code::Unavailable,
                "etcdserver: request timed out, possibly due to connection lost",
            ),
            RequestError::DeadlineNoLeader => return Self::deadline_exceeded(),
            RequestError::NoLeader => (Code::Unavailable, "etcdserver: no leader"),
            RequestError::NotLeader => (Code::FailedPrecondition, "etcdserver: not leader"),
            RequestError::BadTransferee => (
                Code::FailedPrecondition,
                "etcdserver: bad leader transferee",
            ),
            RequestError::Learner => (
                Code::FailedPrecondition,
                "etcdserver: rpc not supported for learner",
            ),
            RequestError::Change(refusal) => return refusal.into(),
            RequestError::Stopped => (Code::Unavailable, "etcdserver: server stopped"),
            RequestError::Unreadable(error) => {
                let text = format!("etcdserver: stored data is unreadable: {error}");
                return Self::new(Code::Internal, text);
            }
        };
        Self::new(code, text)
    }
}

impl From<ChangeRefusal> for Status {
    fn from(refusal: ChangeRefusal) -> Self {
        let (code, text) = match refusal {
            ChangeRefusal::BadUrls => (
                Code::InvalidArgument,
                "etcdserver: given member URLs are invalid",
            ),
            ChangeRefusal::UrlsExist => (
                Code::FailedPrecondition,
                "etcdserver: Peer URLs already exists",
            ),
            ChangeRefusal::NotFound => (Code::NotFound, "etcdserver: member not found"),
            ChangeRefusal::NotLearner => (
                Code::FailedPrecondition,
                "etcdserver: can only promote a learner member",
            ),
            ChangeRefusal::LearnerNotReady => (
                Code::FailedPrecondition,
                "etcdserver: can only promote a learner member which is in sync with leader",
            ),
            ChangeRefusal::TooManyLearners => (
                Code::FailedPrecondition,
                "etcdserver: too many learner members in cluster",
            ),
            // etcd: its table says FailedPrecondition, but the call returns the error without using the table.
            ChangeRefusal::NotEnoughStarted => (
                Code::Unknown,
                "etcdserver: re-configuration failed due to not enough started members",
            ),
            ChangeRefusal::Unhealthy => (Code::Unavailable, "etcdserver: unhealthy cluster"),
            ChangeRefusal::NotLeader | ChangeRefusal::TimedOut => {
                (Code::Unavailable, "etcdserver: request timed out")
            }
            ChangeRefusal::TooMany | ChangeRefusal::NoPeers | ChangeRefusal::Unreadable => {
                return Self::new(Code::FailedPrecondition, format!("etcdserver: {refusal}"));
            }
        };
        Self::new(code, text)
    }
}

/// Bodies of tests never fail.
#[cfg(test)]
impl From<std::convert::Infallible> for Status {
    fn from(never: std::convert::Infallible) -> Self {
        match never {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{LeaseId, Revision};

    // The whole table. A new error breaks the matches above and needs a line here too.

    fn assert_etcds<E: Into<Status> + std::fmt::Debug>(
        table: impl IntoIterator<Item = (E, u8, &'static str)>,
    ) {
        for (error, code, text) in table {
            let name = format!("{error:?}");
            let status = error.into();
            assert_eq!(status.code as u8, code, "{name}");
            assert_eq!(status.message, format!("etcdserver: {text}"), "{name}");
        }
    }

    #[test]
    fn every_refusal_of_the_data_model_has_etcds_code_and_text() {
        let (asked, other) = (Revision(1), Revision(2));
        assert_etcds([
            (KvError::EmptyKey, 3, "key is not provided"),
            (KvError::KeyNotFound, 3, "key not found"),
            (KvError::ValueProvided, 3, "value is provided"),
            (KvError::LeaseProvided, 3, "lease is provided"),
            (
                KvError::TooManyOps { max: 128 },
                3,
                "too many operations in txn request",
            ),
            (
                KvError::DuplicateKey,
                3,
                "duplicate key given in txn request",
            ),
            (KvError::InvalidSortOption, 3, "invalid sort option"),
            (
                KvError::Compacted {
                    asked,
                    oldest: other,
                },
                11,
                "mvcc: required revision has been compacted",
            ),
            (
                KvError::FutureRevision {
                    asked: other,
                    newest: asked,
                },
                11,
                "mvcc: required revision is a future revision",
            ),
            (KvError::NoSpace, 8, "mvcc: database space exceeded"),
            (KvError::Corrupt, 15, "corrupt cluster"),
            (
                KvError::LeaseNotFound(LeaseId(5)),
                5,
                "requested lease not found",
            ),
            (KvError::LeaseExists(LeaseId(5)), 9, "lease already exists"),
            (KvError::TooManyLeases { max: 1 }, 8, "too many leases"),
            (
                KvError::LeaseTtlTooLarge {
                    asked_secs: 9_000_000_001,
                    max_secs: 9_000_000_000,
                },
                11,
                "too large lease TTL",
            ),
            (
                KvError::AnswerTooLarge { bytes_max: 1 },
                8,
                "answer is too large",
            ),
        ]);
    }

    #[test]
    fn a_learner_refuses_with_the_code_that_the_client_knows() {
        let code = |version: Option<&str>| Status::learner(version.map(str::as_bytes)).code;
        for version in ["3.4", "3.4.27", "3.5", "3.5.30"] {
            assert_eq!(code(Some(version)), Code::Unavailable, "{version}");
        }
        for version in ["3.6.0", "3.7", "3.50", ""] {
            assert_eq!(code(Some(version)), Code::FailedPrecondition, "{version}");
        }
        assert_eq!(code(None), Code::FailedPrecondition);
    }

    #[test]
    fn every_failure_of_the_node_has_etcds_code_and_text() {
        assert_etcds([
            (
                RequestError::TooLarge { bytes: 2, max: 1 },
                3,
                "request is too large",
            ),
            (RequestError::TooManyRequests, 8, "too many requests"),
            (RequestError::TimedOut, 14, "request timed out"),
            (
                RequestError::TimedOutLeaderFailed,
                14,
                "request timed out, possibly due to previous leader failure",
            ),
            (
                RequestError::TimedOutConnectionLost,
                14,
                "request timed out, possibly due to connection lost",
            ),
            (RequestError::NoLeader, 14, "no leader"),
            (RequestError::NotLeader, 9, "not leader"),
            (RequestError::Stopped, 14, "server stopped"),
        ]);
    }

    #[test]
    fn a_snapshot_that_is_not_made_says_why() {
        let busy = Status::no_snapshot(ImageError::Busy { max: 2 });
        let text = "etcdserver: 2 snapshots are being made already";
        assert_eq!(busy, Status::new(Code::ResourceExhausted, text));
        let refused = Status::no_snapshot(AuthError::PermissionDenied.into());
        assert_eq!(refused, Status::from(AuthError::PermissionDenied));
        let interrupted = Status::no_snapshot(ImageError::Interrupted);
        let text = "etcdserver: the snapshot was interrupted";
        assert_eq!(interrupted, Status::new(Code::Internal, text));
    }

    /// A refused caller without a user was logged as a mistake of somebody who has the right.
    #[test]
    fn a_caller_that_is_no_user_is_refused_and_a_name_that_is_looked_for_is_not() {
        let (caller, other) = (AuthError::CallerNotFound, AuthError::UserNotFound);
        let of = |error: AuthError| Status::from(RequestError::from(error));
        assert_eq!(of(caller).refusal(), Some("user name not found"));
        assert_eq!(of(other).refusal(), None);
        assert_eq!(
            (of(caller).code, of(caller).message),
            (of(other).code, of(other).message)
        );
        let without_code = Status::without_code(caller.into());
        assert_eq!(without_code.refusal(), Some("user name not found"));
    }

    #[test]
    fn errors_without_etcds_prefix() {
        let table = [
            (
                RequestError::DeadlineNoLeader.into(),
                4,
                "context deadline exceeded",
            ),
            (
                NotStreamable::SortOrder.into(),
                12,
                "RangeStream does not support custom sort orders",
            ),
            (
                NotStreamable::RevisionFilter.into(),
                12,
                "RangeStream does not support revision filters",
            ),
            (
                Status::received_too_large(2_097_153, 2_097_152),
                8,
                "grpc: received message larger than max (2097153 vs. 2097152)",
            ),
            (Status::unknown_service("a.B"), 12, "unknown service a.B"),
            (
                Status::unknown_method("C", "a.B"),
                12,
                "unknown method C for service a.B",
            ),
            (Status::unknown_health_service(), 5, "unknown service"),
            (Status::deadline_exceeded(), 4, "context deadline exceeded"),
            (
                Status::invalid_client_version(),
                3,
                "etcdserver: invalid client api version",
            ),
        ];
        for (status, code, text) in table {
            assert_eq!((status.code as u8, &*status.message), (code, text));
        }
    }
}
