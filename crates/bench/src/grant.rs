//! Grants a lease, for workloads that need one.

use super::{
    channel::{CallError, Channel, Method},
    wire::{self, Fields},
};
use bytes::BytesMut;

/// Time to live of the leases, long enough that none expires during a run.
const TTL_SECS: i64 = 3_600;

/// Grants a lease and returns its id.
pub(super) async fn grant(out: &mut BytesMut, channel: &mut Channel) -> Result<i64, CallError> {
    let request = wire::message(out, |b| wire::lease_grant(b, TTL_SECS));
    let reply = channel.unary(Method::LeaseGrant, request).await?;
    match Fields(&reply).number(2)? {
        0 => Err(CallError::Wrong("a granted lease has no id".into())),
        id => Ok(id),
    }
}
