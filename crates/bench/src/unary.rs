//! Workloads of plain request and answer: put, get, scan, count, compare-and-swap and fill.

use super::{
    args::Settings,
    channel::{CallError, Channel, Method},
    load::{Operation, Workload},
    random::Random,
    wire::{self, Fields, Range, Swap, Swapped},
};
use bytes::BytesMut;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

/// Buffers that each client reuses, so that a request allocates only its own bytes.
pub(super) struct Scratch {
    pub(super) settings: Settings,
    pub(super) random: Random,
    pub(super) out: BytesMut,
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

impl Scratch {
    /// Scratch of client number `index`.
    pub(super) fn new(settings: &Settings, index: usize) -> Self {
        let mut random = Random::of_client(settings, index);
        let value = random.bytes(settings.args.value_bytes);
        let (out, key) = (BytesMut::new(), Vec::new());
        Self {
            settings: settings.clone(),
            random,
            out,
            key,
            value,
        }
    }

    /// Sets `key` to a random key of the key space.
    pub(super) fn any_key(&mut self) {
        let index = self.random.below(self.settings.args.keys);
        self.settings.key(index, &mut self.key);
    }

    pub(super) async fn put(&mut self, channel: &mut Channel) -> Result<(), CallError> {
        let request = wire::message(&mut self.out, |b| wire::put(b, &self.key, &self.value, 0));
        channel.unary_length(Method::Put, request).await?;
        Ok(())
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Put;
pub(super) struct PutClient(Scratch);

impl Workload for Put {
    const KINDS: &'static [&'static str] = &["put"];
    type Client = PutClient;

    async fn client(
        &self,
        settings: &Settings,
        index: usize,
        _: &mut Channel,
    ) -> Result<PutClient, CallError> {
        Ok(PutClient(Scratch::new(settings, index)))
    }
}

impl Operation for PutClient {
    async fn perform(&mut self, channel: &mut Channel) -> Result<usize, CallError> {
        self.0.any_key();
        self.0.put(channel).await?;
        Ok(0)
    }
}

/// Writes each key of the key space once, in order, over all clients.
#[derive(Clone, Debug, Default)]
pub(super) struct Fill {
    next: Arc<AtomicU64>,
}
pub(super) struct FillClient {
    scratch: Scratch,
    next: Arc<AtomicU64>,
}

impl Workload for Fill {
    const KINDS: &'static [&'static str] = &["put"];
    type Client = FillClient;

    async fn client(
        &self,
        settings: &Settings,
        index: usize,
        _: &mut Channel,
    ) -> Result<FillClient, CallError> {
        Ok(FillClient {
            scratch: Scratch::new(settings, index),
            next: Arc::clone(&self.next),
        })
    }
}

impl Operation for FillClient {
    async fn perform(&mut self, channel: &mut Channel) -> Result<usize, CallError> {
        let index = self.next.fetch_add(1, Relaxed) % self.scratch.settings.args.keys;
        self.scratch.settings.key(index, &mut self.scratch.key);
        self.scratch.put(channel).await?;
        Ok(0)
    }
}

/// Reads random keys, all of which exist.
#[derive(Clone, Copy, Debug)]
pub(super) struct Get;
pub(super) struct GetClient(Scratch);

impl Workload for Get {
    const KINDS: &'static [&'static str] = &["get"];
    const FILL: bool = true;
    type Client = GetClient;

    async fn client(
        &self,
        settings: &Settings,
        index: usize,
        _: &mut Channel,
    ) -> Result<GetClient, CallError> {
        Ok(GetClient(Scratch::new(settings, index)))
    }
}

impl Operation for GetClient {
    async fn perform(&mut self, channel: &mut Channel) -> Result<usize, CallError> {
        let Self(scratch) = self;
        scratch.any_key();
        let args = &scratch.settings.args;
        let serializable = args.serializable;
        let range = Range {
            key: &scratch.key,
            serializable,
            ..Range::default()
        };
        let request = wire::message(&mut scratch.out, |b| range.encode(b));
        let length = channel.unary_length(Method::Range, request).await?;
        if length < args.value_bytes + args.key_bytes {
            return Err(CallError::Wrong(
                "the answer is too short to hold the key asked for".into(),
            ));
        }
        Ok(0)
    }
}

/// Reads `--limit` keys in order, from a random one that has as many after it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scan;
pub(super) struct ScanClient {
    scratch: Scratch,
    end: Vec<u8>,
    keys: u64,
}

impl Workload for Scan {
    const KINDS: &'static [&'static str] = &["scan"];
    const FILL: bool = true;
    type Client = ScanClient;

    async fn client(
        &self,
        settings: &Settings,
        index: usize,
        _: &mut Channel,
    ) -> Result<ScanClient, CallError> {
        let keys = settings.args.limit.cast_unsigned().min(settings.args.keys);
        let end = settings.all_keys().1;
        Ok(ScanClient {
            scratch: Scratch::new(settings, index),
            end,
            keys,
        })
    }
}

impl Operation for ScanClient {
    async fn perform(&mut self, channel: &mut Channel) -> Result<usize, CallError> {
        let Self { scratch, end, keys } = self;
        let args = &scratch.settings.args;
        let first = scratch.random.below(args.keys - *keys + 1);
        scratch.settings.key(first, &mut scratch.key);
        let (limit, serializable) = (keys.cast_signed(), args.serializable);
        let range = Range {
            key: &scratch.key,
            end,
            limit,
            serializable,
            ..Range::default()
        };
        let request = wire::message(&mut scratch.out, |b| range.encode(b));
        let length = channel.unary_length(Method::Range, request).await? as u64;
        let least = *keys * (args.value_bytes + args.key_bytes) as u64;
        if length < least {
            let text = format!("{length} bytes cannot hold {keys} keys, which take {least}");
            return Err(CallError::Wrong(text));
        }
        Ok(0)
    }
}

/// Counts all keys of the key space.
#[derive(Clone, Copy, Debug)]
pub(super) struct Count;
pub(super) struct CountClient {
    scratch: Scratch,
    all: (Vec<u8>, Vec<u8>),
}

impl Workload for Count {
    const KINDS: &'static [&'static str] = &["count"];
    const FILL: bool = true;
    type Client = CountClient;

    async fn client(
        &self,
        settings: &Settings,
        index: usize,
        _: &mut Channel,
    ) -> Result<CountClient, CallError> {
        Ok(CountClient {
            scratch: Scratch::new(settings, index),
            all: settings.all_keys(),
        })
    }
}

impl Operation for CountClient {
    async fn perform(&mut self, channel: &mut Channel) -> Result<usize, CallError> {
        let (key, end) = (&self.all.0, &self.all.1);
        let args = &self.scratch.settings.args;
        let (serializable, count_only) = (args.serializable, true);
        let range = Range {
            key,
            end,
            serializable,
            count_only,
            ..Range::default()
        };
        let request = wire::message(&mut self.scratch.out, |b| range.encode(b));
        let reply = channel.unary(Method::Range, request).await?;
        let count = Fields(&reply).number(4)?.cast_unsigned();
        if count < args.keys {
            let text = format!("counted {count} keys where there are {}", args.keys);
            return Err(CallError::Wrong(text));
        }
        Ok(0)
    }
}

/// Keys that one client swaps at most; it learns their revisions before the load starts.
const SWAP_KEYS_MAX: u64 = 64;

/// Compare-and-swap transactions that succeed: each client swaps only keys of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cas;
pub(super) struct CasClient {
    scratch: Scratch,
    /// Number and mod revision of each key of this client.
    keys: Vec<(u64, i64)>,
}

impl Workload for Cas {
    const KINDS: &'static [&'static str] = &["swap"];
    const FILL: bool = true;
    type Client = CasClient;

    async fn client(
        &self,
        settings: &Settings,
        index: usize,
        channel: &mut Channel,
    ) -> Result<CasClient, CallError> {
        let (clients, all) = (settings.args.clients as u64, settings.args.keys);
        let mut scratch = Scratch::new(settings, index);
        let mut keys = Vec::new();
        for turn in 0..SWAP_KEYS_MAX {
            let number = index as u64 + turn * clients;
            if number < all {
                keys.push((number, mod_revision(&mut scratch, number, channel).await?));
            }
        }
        if keys.is_empty() {
            let text = format!("{all} keys are too few: each of {clients} clients needs its own");
            return Err(CallError::Wrong(text));
        }
        Ok(CasClient { scratch, keys })
    }
}

/// Asks for the mod revision of a key that must exist.
async fn mod_revision(
    scratch: &mut Scratch,
    number: u64,
    channel: &mut Channel,
) -> Result<i64, CallError> {
    scratch.settings.key(number, &mut scratch.key);
    let range = Range {
        key: &scratch.key,
        ..Range::default()
    };
    let request = wire::message(&mut scratch.out, |b| range.encode(b));
    let reply = channel.unary(Method::Range, request).await?;
    match Fields(Fields(&reply).bytes(2)?).number(3)? {
        0 => Err(CallError::Wrong(format!(
            "key number {number} is not there"
        ))),
        revision => Ok(revision),
    }
}

impl Operation for CasClient {
    async fn perform(&mut self, channel: &mut Channel) -> Result<usize, CallError> {
        let Self { scratch, keys } = self;
        let turn = scratch.random.position(keys.len());
        let (number, known) = &mut keys[turn];
        scratch.settings.key(*number, &mut scratch.key);
        let swap = Swap::Put {
            value: &scratch.value,
            lease: 0,
        };
        let request = wire::message(&mut scratch.out, |b| {
            wire::swap(b, &scratch.key, *known, swap);
        });
        let reply = channel.unary(Method::Txn, request).await?;
        match Swapped::decode(&reply)? {
            Swapped::Done { revision } if revision > *known => {
                *known = revision;
                Ok(0)
            }
            outcome => {
                let text = format!("a swap that expected revision {known} gave {outcome:?}");
                if let Swapped::Conflict { found } = outcome {
                    *known = found;
                }
                Err(CallError::Wrong(text))
            }
        }
    }
}
