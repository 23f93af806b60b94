//! The states of a watcher as a table: what each event makes of each state. `docs/watch.md` describes them.

use super::super::{
    catch_up::{CatchUp, Memory, ReadTask},
    spec::{Body, Outlet, Response, StreamId, WatchId, WatchSpec, WatcherKey},
};
use super::table::{Bounds, WatcherPhase, Watches};
use crate::{
    kv::{KeyRange, command::EncodedKv, record},
    types::{LeaseId, Record, RecordKind, Rev, Revision},
};
use std::collections::BTreeSet;

const STREAM: StreamId = StreamId(1);

/// A stream that has room or not, and drops what it is sent.
struct Room(bool);

impl Outlet for Room {
    fn has_room(&mut self, _: StreamId) -> bool {
        self.0
    }

    fn send(&mut self, _: StreamId, _: Response) {}
}

/// A stream that keeps what it is sent.
#[derive(Default)]
struct Kept(Vec<Body>);

impl Outlet for Kept {
    fn has_room(&mut self, _: StreamId) -> bool {
        true
    }

    fn send(&mut self, _: StreamId, response: Response) {
        self.0.push(response.body);
    }
}

/// Every key was written at revision 1, and that record is in memory or not.
struct Past {
    in_memory: bool,
    compacted: i64,
}

impl Memory for Past {
    fn compacted(&self) -> Revision {
        Revision(self.compacted)
    }

    fn change_before(&self, _: &[u8], _: Revision) -> Option<Rev> {
        Some(Rev::new(Revision(1), 0))
    }

    fn held(&self, _: Rev) -> Option<EncodedKv> {
        self.in_memory.then(|| put(1).kv)
    }
}

const WARM: Past = Past {
    in_memory: true,
    compacted: -1,
};
const COLD: Past = Past {
    in_memory: false,
    compacted: -1,
};

fn put(revision: i64) -> Record {
    let kv = record::encode(&record::Fields {
        key: b"k",
        create_revision: Revision(1),
        mod_revision: Revision(revision),
        version: revision,
        value: b"value",
        lease: LeaseId(0),
    });
    Record {
        rev: Rev::new(Revision(revision), 0),
        kind: RecordKind::Put,
        kv,
    }
}

/// One watcher with `prev_kv`, and another one that keeps recent events from being dropped.
struct Scene {
    watches: Watches,
    key: WatcherKey,
    /// The read that is under way for it.
    task: Option<ReadTask>,
}

impl Scene {
    fn synced() -> Self {
        let bounds = Bounds {
            recent_bytes_max: 1 << 20,
            watchers_max: 2,
        };
        let mut watches = Watches::new(Revision(1), bounds, 7);
        watches.open(STREAM);
        let all = KeyRange::from_wire(&"k".into(), &"".into());
        let spec = WatchSpec {
            prev_kv: true,
            ..WatchSpec::of(all)
        };
        watches.create(STREAM, spec, Revision(0), &mut Room(true));
        let key = WatcherKey { slot: 0, life: 0 };
        let task = None;
        Self { watches, key, task }
    }

    /// A watcher in the state of this name.
    fn of(state: &str) -> Self {
        let mut scene = Self::synced();
        match state {
            "synced" => {}
            "queued" => scene.publish(&COLD, true),
            "reading" => {
                scene.publish(&COLD, true);
                scene.task = scene.watches.next_read(&mut Room(true));
                assert!(scene.task.is_some(), "its turn comes");
            }
            "starved" => scene.publish(&WARM, false),
            other => unreachable!("no state is called {other}"),
        }
        assert_eq!(scene.state(), state);
        scene
    }

    fn state(&self) -> &'static str {
        match self.watches.watcher(self.key).map(|watcher| watcher.phase) {
            Some(WatcherPhase::Synced) => "synced",
            Some(WatcherPhase::Queued) => "queued",
            Some(WatcherPhase::Reading) => "reading",
            Some(WatcherPhase::Starved) => "starved",
            None => "gone",
        }
    }

    fn publish(&mut self, memory: &Past, room: bool) {
        let revision = self.watches.newest().next();
        let records = [put(revision.0)];
        self.watches
            .publish(&records, revision, memory, &mut Room(room));
    }

    fn turn(&mut self, room: bool) {
        if self.watches.next_read(&mut Room(room)).is_none() {
            self.watches.read_recent(&COLD, &mut Room(room));
        }
    }

    /// The read is over, which found an event in the revisions up to the newest one less `behind`.
    fn read(&mut self, behind: i64, room: bool) {
        self.read_into(behind, &mut Room(room));
    }

    fn read_into(&mut self, behind: i64, outlet: &mut dyn Outlet) {
        let Some(task) = &self.task else { return };
        let through = self.watches.newest().0 - behind;
        let event = super::super::event::WatchedChange::new(put(through))
            .event(false, |_, _| Ok::<_, std::convert::Infallible>(None));
        let Ok(event) = event;
        let found = CatchUp::Read {
            through: Revision(through),
            events: vec![Some(super::super::events::Events::new(&[event]))],
        };
        self.watches.complete(task, found, outlet);
    }

    fn compacted(&mut self) {
        let Some(task) = &self.task else { return };
        let oldest = self.watches.newest().next();
        let found = CatchUp::Compacted { oldest };
        self.watches.complete(task, found, &mut Room(true));
    }
}

/// An event: its name, and what happens.
type WatchEvent = (&'static str, fn(&mut Scene));

const EVENTS: [WatchEvent; 13] = [
    ("change", |scene| scene.publish(&WARM, true)),
    ("change, no room", |scene| scene.publish(&WARM, false)),
    ("change, value on disk", |scene| scene.publish(&COLD, true)),
    ("revisions missed", |scene| {
        let newest = Revision(scene.watches.newest().0 + 2);
        let records = [put(newest.0)];
        scene
            .watches
            .publish(&records, newest, &WARM, &mut Room(true));
    }),
    ("turn", |scene| scene.turn(true)),
    ("turn, no room", |scene| scene.turn(false)),
    ("read to the newest", |scene| scene.read(0, true)),
    ("read in part", |scene| scene.read(1, true)),
    ("read, no room", |scene| scene.read(0, false)),
    ("read: compacted", Scene::compacted),
    ("stream has room", |scene| {
        scene.watches.drained(STREAM, &mut Room(true));
    }),
    ("cancel", |scene| {
        scene.watches.cancel(STREAM, WatchId(0), &mut Room(true));
    }),
    ("right taken away", |scene| {
        scene.watches.deny(|_| false, &mut Room(true));
        // A read that is under way ends all the same.
        scene.read(0, true);
    }),
];

const STATES: [&str; 4] = ["synced", "queued", "reading", "starved"];

/// An empty cell: the state stays.
const TABLE: &str = "
                      | synced  | queued  | reading | starved
change                |         |         |         |
change, no room       | starved |         |         |
change, value on disk | queued  |         |         |
revisions missed      | queued  |         |         |
turn                  |         | reading |         |
turn, no room         |         | starved |         |
read to the newest    |         |         | synced  |
read in part          |         |         | queued  |
read, no room         |         |         | starved |
read: compacted       |         |         | gone    |
stream has room       |         |         |         | queued
cancel                | gone    | gone    | gone    | gone
right taken away      | gone    | gone    | gone    | gone
";

#[test]
fn each_event_in_each_state_leads_where_the_table_says() {
    let line = |first: &str, cells: &[&str]| {
        let cells: Vec<_> = cells.iter().map(|cell| format!(" | {cell:<7}")).collect();
        let line = format!("{first:<21}{}", cells.concat());
        line.trim_end().to_owned()
    };
    let mut lines = vec![String::new(), line("", &STATES)];
    for (name, happens) in EVENTS {
        let after = STATES.map(|state| {
            let mut scene = Scene::of(state);
            happens(&mut scene);
            scene.watches.check();
            let after = scene.state();
            if after == state { "" } else { after }
        });
        lines.push(line(name, &after));
    }
    lines.push(String::new());
    let table = lines.join("\n");
    assert_eq!(table, TABLE, "the table is:\n{table}");
}

/// The page names the states that may follow each. It leaves out the end, which any state may have.
#[test]
fn the_page_leads_from_each_state_where_the_table_does() {
    let page = include_str!("../../../../docs/watch.md");
    for (at, state) in STATES.iter().enumerate() {
        let begins = format!("| {state} |");
        let row = page.lines().find(|line| line.starts_with(&begins));
        let row = row.expect("docs/watch.md has a row for each state");
        let described: BTreeSet<&str> = row.split('*').skip(1).step_by(2).collect();
        let cells = TABLE.lines().skip(2);
        let cells = cells.filter_map(|line| line.split('|').nth(at + 1).map(str::trim));
        let tested: BTreeSet<&str> = cells.filter(|to| !["", "gone"].contains(to)).collect();
        assert_eq!(described, tested, "what follows {state}, in docs/watch.md");
    }
}

#[test]
fn a_watch_whose_right_is_taken_away_while_it_catches_up_gets_nothing_more() {
    for state in ["queued", "reading", "starved"] {
        let (mut scene, mut kept) = (Scene::of(state), Kept::default());
        scene.watches.deny(|_| false, &mut kept);
        scene.read_into(0, &mut kept);
        scene.watches.drained(STREAM, &mut kept);
        scene.watches.read_recent(&WARM, &mut kept);
        assert!(scene.watches.next_read(&mut kept).is_none(), "{state}");
        assert_eq!(kept.0, [Body::Denied], "{state}");
        scene.watches.check();
    }
}
