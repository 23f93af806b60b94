//! Lease workloads: grant, and keep-alive.

use super::{
    args::Settings,
    channel::{CallError, Channel, Method, Stream},
    grant::grant,
    load::{Operation, Workload},
    wire::{self, Fields},
};
use bytes::BytesMut;

#[derive(Clone, Copy, Debug)]
pub(super) struct Grant;
pub(super) struct GrantClient(BytesMut);

impl Workload for Grant {
    const KINDS: &'static [&'static str] = &["grant"];
    type Client = GrantClient;

    async fn client(
        &self,
        _: &Settings,
        _: usize,
        _: &mut Channel,
    ) -> Result<GrantClient, CallError> {
        Ok(GrantClient(BytesMut::new()))
    }
}

impl Operation for GrantClient {
    async fn perform(&mut self, channel: &mut Channel) -> Result<usize, CallError> {
        grant(&mut self.0, channel).await?;
        Ok(0)
    }
}

/// Renews leases, each client its own over its own stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeepAlive;
pub(super) struct KeepAliveClient {
    lease: i64,
    stream: Stream,
    out: BytesMut,
}

impl Workload for KeepAlive {
    const KINDS: &'static [&'static str] = &["renewal"];
    type Client = KeepAliveClient;

    async fn client(
        &self,
        _: &Settings,
        _: usize,
        channel: &mut Channel,
    ) -> Result<KeepAliveClient, CallError> {
        let mut out = BytesMut::new();
        let lease = grant(&mut out, channel).await?;
        let stream = channel.stream(Method::LeaseKeepAlive).await?;
        Ok(KeepAliveClient { lease, stream, out })
    }
}

impl Operation for KeepAliveClient {
    async fn perform(&mut self, _: &mut Channel) -> Result<usize, CallError> {
        let request = wire::message(&mut self.out, |b| wire::lease_keep_alive(b, self.lease));
        self.stream.send(request)?;
        let reply = self.stream.next().await?;
        let (id, ttl_secs) = (Fields(&reply).number(2)?, Fields(&reply).number(3)?);
        if id != self.lease || ttl_secs <= 0 {
            let text = format!("renewing {:x} gave TTL {ttl_secs} of {id:x}", self.lease);
            return Err(CallError::Wrong(text));
        }
        Ok(0)
    }
}
