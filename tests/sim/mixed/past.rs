//! Clients of the past: they read and watch old revisions, and prefer members that restarted a moment ago.
//!
//! A member that restarted has what its disk had, and until a leader reaches it, nothing else: here its disk has to be right by
//! itself. So everything these clients ask can be answered by a member that is cut off.

use super::{ClientContext, watchers};
use crate::{
    clients::Client,
    history::{Range, Request, Revision},
};

/// The longest pause between two requests of a client, in milliseconds.
const PAUSE_MILLIS_MAX: u64 = 150;
/// So many revisions back at most: further than compactions go, so that some are refused.
const BACK_MAX: u64 = 100;

/// A client that reads or watches one old revision after the other.
pub(crate) async fn work(client: Client, context: ClientContext) {
    loop {
        client.pause(client.below(PAUSE_MILLIS_MAX)).await;
        if context.ended() {
            return;
        }
        let slot = context
            .restarted(&client)
            .unwrap_or_else(|| context.any(&client));
        let revision = (context.newest() - back(&client)).max(1);
        if client.below(4) == 0 {
            watchers::watch_old(&client, &context, slot, revision).await;
        } else {
            let all = Request::Range(Range {
                key: "k".into(),
                range_end: "l".into(),
                revision,
                serializable: true,
                ..Range::default()
            });
            context.request_at(&client, slot, all).await;
        }
    }
}

fn back(client: &Client) -> Revision {
    Revision::try_from(client.below(BACK_MAX)).unwrap()
}
