//! What the real etcd does otherwise than Quorate, by name and version: every allowance that a test makes is one of these.
//!
//! Quorate follows 3.7.3. Where it differs from that version too, `docs/compat.md` says so.

use super::{note, tools};

/// Something that some versions of etcd do otherwise.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Difference {
    AlarmHeader,
    AnswerBound,
    AuthStatus,
    CancelledCalls,
    CompressedAnswers,
    Downgrade,
    ExperimentalFlags,
    FutureWatchNotified,
    LostPlaceLeads,
    MetadataBound,
    NegativeStart,
    PlainHttp2,
    PrevKvOfCreation,
    ProgressOfFutureWatch,
    ProgressWithoutWatch,
    RangeStream,
    ServerStreamErrors,
    SortOptions,
    StreamByValue,
    TxnChecks,
}

/// The versions that have a difference.
enum Versions {
    Before(u32, u32),
    From(u32, u32),
    All,
}

impl Difference {
    /// What etcd does, and which versions.
    fn entry(self) -> (&'static str, Versions) {
        use Versions::{All, Before, From};
        match self {
            Self::AlarmHeader => ("answers about alarms without a header", Before(3, 5)),
            Self::AnswerBound => ("bounds no answer to a write below 2 GiB", All),
            Self::AuthStatus => ("has no AuthStatus", Before(3, 5)),
            Self::CancelledCalls => ("serves a client that cancels all calls at once", All),
            Self::CompressedAnswers => ("compresses the answer to a compressed request", All),
            Self::Downgrade => ("is asked about downgrades to other versions", Before(3, 7)),
            Self::ExperimentalFlags => (
                "calls its flag --experimental-watch-progress-notify-interval",
                Before(3, 6),
            ),
            Self::FutureWatchNotified => ("notifies a watch from the future", Before(3, 5)),
            Self::LostPlaceLeads => (
                "tells one that waits and loses its lease that its turn has come",
                All,
            ),
            Self::MetadataBound => ("takes 16 MiB of metadata", All),
            Self::NegativeStart => ("takes a negative start revision", Before(3, 5)),
            Self::PlainHttp2 => ("answers plain HTTP/2 requests with 415", From(3, 7)),
            Self::PrevKvOfCreation => (
                "sends the previous value with a put that creates its key",
                Before(3, 7),
            ),
            Self::ProgressOfFutureWatch => (
                "sends progress to a stream that has a watch from the future",
                Before(3, 5),
            ),
            Self::ProgressWithoutWatch => {
                ("sends progress to a stream without a watch", Before(3, 5))
            }
            Self::RangeStream => ("has no RangeStream", Before(3, 7)),
            Self::ServerStreamErrors => (
                "refuses bad framing of a call with streamed answers as of any other",
                Before(3, 7),
            ),
            Self::SortOptions => ("does not check sort options", Before(3, 6)),
            Self::StreamByValue => (
                "counts, repeats and omits keys of a range streamed by value",
                From(3, 7),
            ),
            Self::TxnChecks => (
                "checks the puts of a transaction before its ranges",
                Before(3, 7),
            ),
        }
    }

    /// Whether the installed etcd has it; then it prints that.
    pub(crate) fn in_etcd(self) -> bool {
        let (what, versions) = self.entry();
        let version = tools::etcd_version();
        let here = match versions {
            Versions::Before(major, minor) => version < (major, minor),
            Versions::From(major, minor) => version >= (major, minor),
            Versions::All => true,
        };
        if here {
            note(&format!(
                "not compared: etcd {}.{} {what}",
                version.0, version.1
            ));
        }
        here
    }
}
