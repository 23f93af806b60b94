//! Events: finding the watchers that a change concerns, and encoding what they are sent.

use crate::{VALUE_BYTES, key, scattered};
use divan::{Bencher, black_box, counter::ItemsCount};
use quorate::internals::{
    api::{frames::Frames, reply::WatchReply},
    kv::{
        KeyRange,
        command::EncodedKv,
        record,
        watch::{Bounds, Event, Memory, Outlet, Response, StreamId, WatchSpec, Watches},
    },
    types::{Record, RecordKind, Rev, Revision},
};

/// Matches a batch of 64 puts with this many watchers of single keys, and one of the prefix.
#[divan::bench(args = [1, 1_000, 100_000])]
fn event_matching(bencher: Bencher<'_, '_>, watchers: u64) {
    let bounds = Bounds {
        recent_bytes_max: 1 << 20,
        watchers_max: usize::MAX,
    };
    let mut hub = Watches::new(Revision(1), bounds, 1);
    let (stream, mut taken) = (StreamId(1), Taken(0));
    hub.open(stream);
    let single = |number| KeyRange::from_wire(&key(number).into(), &"".into());
    let prefix = KeyRange::from_wire(&"bench/".into(), &"bench0".into());
    for range in (0..watchers).map(single).chain([prefix]) {
        hub.create(stream, WatchSpec::of(range), Revision(0), &mut taken);
    }
    let mut order = scattered(100_000);
    let mut newest = 1;
    bencher
        .counter(ItemsCount::new(64_u64))
        .with_inputs(|| {
            let batch: Vec<Record> = (1..=64)
                .map(|at| changed(order.next().unwrap_or_default(), newest + at))
                .collect();
            newest += 64;
            (batch, Revision(newest))
        })
        .bench_local_values(|(batch, newest)| {
            hub.publish(&batch, newest, &Nothing, &mut taken);
        });
    assert!(taken.0 > 0, "the prefix concerns every change");
}

/// Encodes a change as an event, once, and a response that carries it.
#[divan::bench]
fn event_encoding(bencher: Bencher<'_, '_>) {
    let record = changed(1, 2);
    let reply = WatchReply::default();
    bencher.bench_local(|| {
        let event = Event::new(record.rev, record.kind, &record.kv, None);
        let mut frames = Frames::default();
        frames.add_watch(black_box(&reply), event.wire).unwrap();
        frames
    });
}

fn changed(number: u64, major: i64) -> Record {
    let (key, value) = (key(number), [7; VALUE_BYTES]);
    let fields = record::Fields {
        key: key.as_bytes(),
        create_revision: Revision(major),
        mod_revision: Revision(major),
        version: 1,
        value: &value,
        ..record::Fields::default()
    };
    Record {
        rev: Rev::new(Revision(major), 0),
        kind: RecordKind::Put,
        kv: record::encode(&fields),
    }
}

/// Counts responses.
struct Taken(u64);

impl Outlet for Taken {
    fn has_room(&mut self, _: StreamId) -> bool {
        true
    }

    fn send(&mut self, _: StreamId, response: Response) {
        self.0 += 1;
        black_box(response);
    }
}

/// Stored history, which the benchmark never reads.
struct Nothing;

impl Memory for Nothing {
    fn compacted(&self) -> Revision {
        Revision(0)
    }

    fn change_before(&self, _: &[u8], _: Revision) -> Option<Rev> {
        None
    }

    fn held(&self, _: Rev) -> Option<EncodedKv> {
        None
    }
}
