//! The load of a Kubernetes API server, in the requests its storage layer makes.
//!
//! Objects are created, updated and deleted by transactions that compare the mod revision; lists read a prefix
//! page by page at the first page's size; a consistent read from the API server's own cache reads the resource
//! prefix as a plain key, for the header's revision only. At the same time there are the watch caches: for each resource a
//! watch with `prev_kv` and `progress_notify`, on which progress is requested every 100 ms.
//!
//! Each client has objects of its own and knows their revisions, so every compare should succeed. About half of
//! the objects exist at any time.

use super::{
    args::Settings,
    channel::{CallError, Channel, Method, Stream},
    grant::grant,
    load::{Lane, Operation, Workload},
    unary::Scratch,
    watch::{self, Stamps},
    wire::{self, Fields, Range, Swap, Swapped, Watch, WatchReply},
};
use bytes::{Bytes, BytesMut};
use std::{io::Write, time::Duration};
use tokio::{
    task::spawn_local,
    time::{Instant, MissedTickBehavior, interval},
};

/// What the keys of all objects begin with.
pub(super) const REGISTRY: &str = "/registry/";
/// Resources; a client's objects are spread over them.
const RESOURCES: [&str; 4] = ["pods", "leases", "configmaps", "events"];
/// How often the API server requests progress on its watches while it serves consistent reads.
const PROGRESS_REQUEST_TIME: Duration = Duration::from_millis(100);
/// Objects of a client, half of which exist: at least and at most.
const OBJECTS_MIN: u64 = 4;
const OBJECTS_MAX: u64 = 1_000;

/// What a client does, and how often out of 100. Updates lead: node and leader leases, and statuses.
const MIX: [(Kind, u64); 8] = [
    (Kind::Update, 38),
    (Kind::Get, 24),
    (Kind::Create, 10),
    (Kind::Delete, 10),
    (Kind::Consistent, 9),
    (Kind::List, 5),
    (Kind::Count, 2),
    (Kind::Lease, 2),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Create,
    Update,
    Delete,
    Get,
    List,
    Count,
    Consistent,
    Lease,
    Event,
}

/// The mix, and the clock of its events.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kubernetes {
    stamps: Stamps,
}

impl Kubernetes {
    /// Times count from now.
    pub(super) fn new() -> Self {
        Self {
            stamps: Stamps::new(),
        }
    }

    /// Reads one watch stream until the run ends, and requests progress at intervals.
    async fn cache(self, lane: Lane, mut stream: Stream) {
        let ask = wire::message(&mut BytesMut::new(), wire::progress_request);
        let mut due = interval(PROGRESS_REQUEST_TIME);
        due.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let step = tokio::select! {
                reply = stream.next() => reply.and_then(|reply| self.take(&lane, &reply)),
                _ = due.tick() => stream.send(ask.clone()),
            };
            if let Err(error) = step {
                return lane.error(&error);
            }
        }
    }

    fn take(self, lane: &Lane, reply: &[u8]) -> Result<(), CallError> {
        let reply = WatchReply::decode(reply)?;
        if reply.canceled {
            return Err(CallError::Wrong(format!(
                "canceled: {}",
                reply.cancel_reason()?
            )));
        }
        let now = Instant::now();
        reply.values(|value| {
            if let Some(sent) = self.stamps.sent(value, now) {
                lane.record(Kind::Event as usize, sent, now);
            }
        })?;
        Ok(())
    }
}

impl Workload for Kubernetes {
    const KINDS: &'static [&'static str] = &[
        "create",
        "update",
        "delete",
        "get",
        "list",
        "count",
        "consistent",
        "lease",
        "event",
    ];
    const HEADLINE: &'static [usize] = &[0, 1, 2, 3, 4, 5, 6, 7]; // what clients do
    type Client = Controller;

    async fn client(
        &self,
        settings: &Settings,
        index: usize,
        channel: &mut Channel,
    ) -> Result<Controller, CallError> {
        let share = settings.args.keys / settings.args.clients as u64;
        let objects = share.clamp(OBJECTS_MIN, OBJECTS_MAX);
        let mut controller = Controller {
            scratch: Scratch::new(settings, index),
            stamps: self.stamps,
            index,
            revisions: vec![0; usize::try_from(objects).expect("at most OBJECTS_MAX")],
            lease: 0,
        };
        controller.lease = grant(&mut controller.scratch.out, channel).await?;
        for object in (0..controller.revisions.len()).step_by(2) {
            controller.swap(object, Kind::Create, channel).await?;
        }
        Ok(controller)
    }

    async fn background(&self, lane: &Lane, channels: &mut [Channel]) -> Result<(), CallError> {
        let args = &lane.settings.args;
        let connections = channels.len();
        for (turn, number) in (lane.thread..args.streams)
            .step_by(args.threads)
            .enumerate()
        {
            let (key, end) = resource(number);
            let mut stream = channels[turn % connections].stream(Method::Watch).await?;
            let (progress_notify, previous) = (true, true);
            let watch = Watch {
                key: &key,
                end: &end,
                start_revision: 0,
                progress_notify,
                previous,
            };
            watch::create(&mut stream, watch).await?;
            drop(spawn_local(self.cache(lane.clone(), stream)));
        }
        Ok(())
    }
}

/// The range of all objects of a resource.
fn resource(number: usize) -> (Vec<u8>, Vec<u8>) {
    let key = format!("{REGISTRY}{}/", RESOURCES[number % RESOURCES.len()]).into_bytes();
    let end = wire::prefix_end(&key);
    (key, end)
}

/// One client: a controller with its objects.
pub(super) struct Controller {
    scratch: Scratch,
    stamps: Stamps,
    index: usize,
    /// Mod revision of each object; zero while it does not exist.
    revisions: Vec<i64>,
    lease: i64,
}

impl Operation for Controller {
    async fn perform(&mut self, channel: &mut Channel) -> Result<usize, CallError> {
        let objects = self.revisions.len();
        let object = self.scratch.random.position(objects);
        let mut kind = self.choose();
        // A create needs an absent object, the others an existing one: take the next suitable one, if any.
        if let Kind::Create | Kind::Update | Kind::Delete | Kind::Get = kind {
            let absent = kind == Kind::Create;
            let mut from_here = (0..objects).map(|step| (object + step) % objects);
            let suits = from_here.find(|o| (self.revisions[*o] == 0) == absent);
            let object = suits.unwrap_or(object);
            if suits.is_none() {
                kind = if absent { Kind::Delete } else { Kind::Create };
            }
            match kind {
                Kind::Get => self.get(object, channel).await?,
                _ => self.swap(object, kind, channel).await?,
            }
        } else {
            self.read(object, kind, channel).await?;
        }
        Ok(kind as usize)
    }
}

impl Controller {
    fn choose(&mut self) -> Kind {
        let mut drawn = self
            .scratch
            .random
            .below(MIX.iter().map(|(_, weight)| weight).sum());
        for (kind, weight) in MIX {
            if drawn < weight {
                return kind;
            }
            drawn -= weight;
        }
        unreachable!("a number below the sum of the weights falls to one of them");
    }

    fn name(&mut self, object: usize) {
        self.scratch.key.clear();
        let resource = RESOURCES[object % RESOURCES.len()];
        let index = self.index;
        write!(
            self.scratch.key,
            "{REGISTRY}{resource}/ns-{index:06}/object-{object:04}"
        )
        .expect("vectors take any bytes");
    }

    /// Creates, updates or deletes an object the way the API server does.
    async fn swap(
        &mut self,
        object: usize,
        kind: Kind,
        channel: &mut Channel,
    ) -> Result<(), CallError> {
        self.name(object);
        let known = self.revisions[object];
        let Scratch {
            value, key, out, ..
        } = &mut self.scratch;
        self.stamps.stamp(value);
        // Kubernetes attaches leases to its events, and to little else.
        let lease = if RESOURCES[object % RESOURCES.len()] == "events" {
            self.lease
        } else {
            0
        };
        let swap = if kind == Kind::Delete {
            Swap::Delete
        } else {
            Swap::Put { value, lease }
        };
        let request = wire::message(out, |b| wire::swap(b, key, known, swap));
        let reply = channel.unary(Method::Txn, request).await?;
        match Swapped::decode(&reply)? {
            Swapped::Done { revision } if revision > known => {
                self.revisions[object] = if kind == Kind::Delete { 0 } else { revision };
                Ok(())
            }
            outcome => {
                let name = String::from_utf8_lossy(key).into_owned();
                let text = format!("{kind:?} of {name} at revision {known} gave {outcome:?}");
                if let Swapped::Conflict { found } = outcome {
                    self.revisions[object] = found;
                }
                Err(CallError::Wrong(text))
            }
        }
    }

    async fn get(&mut self, object: usize, channel: &mut Channel) -> Result<(), CallError> {
        self.name(object);
        let range = Range {
            key: &self.scratch.key,
            limit: 1,
            ..Range::default()
        };
        let request = wire::message(&mut self.scratch.out, |b| range.encode(b));
        let reply = channel.unary(Method::Range, request).await?;
        let found = Fields(Fields(&reply).bytes(2)?).number(3)?;
        let known = self.revisions[object];
        if found != known {
            let text = format!("read mod revision {found} of an object last written at {known}");
            return Err(CallError::Wrong(text));
        }
        Ok(())
    }

    /// What concerns a whole resource, or none.
    async fn read(
        &mut self,
        number: usize,
        kind: Kind,
        channel: &mut Channel,
    ) -> Result<(), CallError> {
        let (key, end) = resource(number);
        let all = Range {
            key: &key,
            end: &end,
            ..Range::default()
        };
        let range = match kind {
            Kind::List => Range {
                limit: self.scratch.settings.args.limit,
                ..all
            },
            Kind::Count => Range {
                count_only: true,
                ..all
            },
            Kind::Consistent => Range {
                end: &[],
                limit: 1,
                ..all
            },
            Kind::Lease => {
                self.lease = grant(&mut self.scratch.out, channel).await?;
                return Ok(());
            }
            Kind::Create | Kind::Update | Kind::Delete | Kind::Get | Kind::Event => {
                unreachable!("{kind:?} concerns one object")
            }
        };
        let request: Bytes = wire::message(&mut self.scratch.out, |b| range.encode(b));
        if kind == Kind::List {
            channel.unary_length(Method::Range, request).await?;
            return Ok(());
        }
        let reply = channel.unary(Method::Range, request).await?;
        if Fields(&reply).header_revision()? <= 0 {
            return Err(CallError::Wrong(
                "a read without a revision in its header".into(),
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kinds_are_named_in_their_order() {
        let kinds = Kubernetes::KINDS;
        for (kind, _) in MIX {
            let name = format!("{kind:?}").to_lowercase();
            assert_eq!(kinds[kind as usize], name, "the name of {kind:?}");
        }
        assert_eq!(
            kinds[Kind::Event as usize],
            "event",
            "the kind no client does"
        );
        assert_eq!(
            MIX.iter().map(|(_, weight)| weight).sum::<u64>(),
            100,
            "out of 100"
        );
    }

    #[test]
    fn objects_lie_in_the_range_of_their_resource() {
        let settings = super::super::args::tests::settings(&["k8s"]).unwrap();
        let mut controller = Controller {
            scratch: Scratch::new(&settings, 3),
            stamps: Kubernetes::new().stamps,
            index: 3,
            revisions: vec![0; 8],
            lease: 1,
        };
        for object in 0..8 {
            controller.name(object);
            let (first, end) = resource(object);
            assert!(
                controller.scratch.key.starts_with(&first),
                "object {object} below its prefix"
            );
            assert!(
                controller.scratch.key < end,
                "object {object} before the end"
            );
        }
    }
}
