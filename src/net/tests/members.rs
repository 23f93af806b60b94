//! Hubs with an inbox that remembers everything, and conditions to wait for.

use crate::{
    net::{
        Delivery, GuestQuestion, Hub, HubSettings, Inbox, IncomingSnapshot, Listener, Pacing,
        PeerAddress, PeerRequest, PeerSecurity, TlsFiles, VERSION_HIGH, cert,
    },
    raft::{Envelope, Message, MessageBody},
    types::{ClusterId, Entry, EntryKind, Identity, LogIndex, LogPosition, MemberId, Term},
};
use std::{
    cell::{Cell, RefCell},
    path::Path,
    rc::Rc,
    time::Duration,
};
use tokio::{sync::Notify, task::LocalSet};

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a test on one thread.
pub(in crate::net) fn run<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        tokio::time::timeout(PATIENCE, test)
            .await
            .expect("the condition never came true")
    })
}

/// Quick, so that tests are.
pub(in crate::net) fn pacing() -> Pacing {
    Pacing {
        idle_timeout: Duration::from_secs(2),
        keep_alive: Duration::from_millis(300),
        handshake_timeout: Duration::from_secs(2),
        redial_least: Duration::from_millis(5),
        redial_most: Duration::from_millis(50),
        probe: Duration::from_millis(200),
        tls_look: Duration::from_millis(10),
    }
}

/// A certificate authority in a folder.
pub(in crate::net) struct Authority {
    dir: tempfile::TempDir,
}

impl Authority {
    pub(in crate::net) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        cert::make_ca(dir.path(), 1).unwrap();
        Self { dir }
    }

    pub(in crate::net) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The files of a member, made if they do not exist.
    pub(in crate::net) fn member(&self, name: &str) -> PeerSecurity {
        self.member_valid(name, 1)
    }

    pub(in crate::net) fn member_valid(&self, name: &str, days: u32) -> PeerSecurity {
        let dir = self.path();
        let file = dir.join(format!("{name}.pem"));
        if !file.exists() {
            cert::make_member(dir, dir, name, &[], days).unwrap();
        }
        self.files(name)
    }
}

impl Authority {
    /// The files of a certificate that names no member: a common name, and hosts.
    pub(in crate::net) fn foreign(&self, name: &str, hosts: &[&str]) -> PeerSecurity {
        let dir = self.path();
        let file = format!("foreign-{name}-{}", hosts[0]);
        cert::make_foreign(dir, &file, name, hosts);
        self.files(&file)
    }

    /// The same files, and a list that revokes the certificate of `bad`.
    pub(in crate::net) fn revoking(
        &self,
        security: PeerSecurity,
        bad: &PeerSecurity,
    ) -> PeerSecurity {
        let (PeerSecurity::Files(mut files), PeerSecurity::Files(bad)) = (security, bad) else {
            panic!("both have files");
        };
        let list = cert::make_crl(self.path(), std::slice::from_ref(&bad.cert)).unwrap();
        files.crl = list.first().cloned();
        PeerSecurity::Files(files)
    }

    fn files(&self, name: &str) -> PeerSecurity {
        let dir = self.path();
        PeerSecurity::Files(TlsFiles {
            cert: dir.join(format!("{name}.pem")),
            key: dir.join(format!("{name}-key.pem")),
            ca: dir.join(cert::CA_FILE),
            crl: None,
            allowed: crate::tls::AllowedNames::default(),
            refuse_readable_keys: false,
        })
    }
}

#[derive(Default)]
pub(in crate::net) struct Post {
    pub(in crate::net) messages: RefCell<Vec<(MemberId, Message)>>,
    pub(in crate::net) requests: RefCell<Vec<PeerRequest>>,
    pub(in crate::net) guests: RefCell<Vec<GuestQuestion>>,
    pub(in crate::net) snapshots: RefCell<Vec<IncomingSnapshot>>,
    pub(in crate::net) connected: Cell<usize>,
    /// That of the newest connection.
    pub(in crate::net) version: Cell<u16>,
    pub(in crate::net) disconnected: Cell<usize>,
    pub(in crate::net) dropped: Cell<usize>,
    pub(in crate::net) refused: RefCell<Vec<(MemberId, u64, String)>>,
    /// Appends are not taken while this is set.
    pub(in crate::net) stalled: Cell<bool>,
    changed: Notify,
}

impl Post {
    /// Waits until `condition` holds.
    pub(in crate::net) async fn until(&self, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            let changed = self.changed.notified();
            if condition(self) {
                return;
            }
            changed.await;
        }
    }

    pub(in crate::net) fn bodies_from(&self, from: MemberId) -> Vec<MessageBody> {
        let messages = self.messages.borrow();
        messages
            .iter()
            .filter(|(id, _)| *id == from)
            .map(|(_, said)| said.body.clone())
            .collect()
    }

    pub(in crate::net) fn is_up(&self) -> bool {
        self.connected.get() > self.disconnected.get()
    }
}

struct SharedPost(Rc<Post>);

impl Inbox for SharedPost {
    fn messages(&self, from: MemberId, messages: Vec<Message>) -> Delivery {
        let post = Rc::clone(&self.0);
        Box::pin(async move {
            let appends = messages
                .iter()
                .any(|said| matches!(said.body, MessageBody::Append { .. }));
            if appends {
                post.until(|post| !post.stalled.get()).await;
            }
            post.messages
                .borrow_mut()
                .extend(messages.into_iter().map(|message| (from, message)));
            post.changed.notify_waiters();
        })
    }

    fn requests(&self, requests: Vec<PeerRequest>) -> Delivery {
        self.0.requests.borrow_mut().extend(requests);
        self.0.changed.notify_waiters();
        Box::pin(async {})
    }

    fn guest(&self, question: GuestQuestion) -> Delivery {
        self.0.guests.borrow_mut().push(question);
        self.0.changed.notify_waiters();
        Box::pin(async {})
    }

    fn snapshot(&self, incoming: IncomingSnapshot) -> Delivery {
        self.0.snapshots.borrow_mut().push(incoming);
        self.0.changed.notify_waiters();
        Box::pin(async {})
    }

    fn connected(&self, _: MemberId, version: u16) {
        self.0.version.set(version);
        self.0.connected.set(self.0.connected.get() + 1);
        self.0.changed.notify_waiters();
    }

    fn disconnected(&self, _: MemberId) {
        self.0.disconnected.set(self.0.disconnected.get() + 1);
        self.0.changed.notify_waiters();
    }

    fn dropped(&self, _: MemberId) {
        self.0.dropped.set(self.0.dropped.get() + 1);
        self.0.changed.notify_waiters();
    }

    fn refused(&self, by: MemberId, code: u64, text: &str) {
        self.0
            .refused
            .borrow_mut()
            .push((by, code, text.to_owned()));
        self.0.changed.notify_waiters();
    }
}

/// A member under test.
pub(in crate::net) struct Member {
    pub(in crate::net) id: MemberId,
    pub(in crate::net) name: String,
    pub(in crate::net) hub: Hub,
    pub(in crate::net) post: Rc<Post>,
    pub(in crate::net) address: String,
}

impl Member {
    /// Member `n{id}` of cluster 1.
    pub(in crate::net) fn start(id: u64, security: PeerSecurity) -> Self {
        Self::start_as(settings(id, security))
    }

    pub(in crate::net) fn start_as(settings: HubSettings) -> Self {
        Self::listening(
            Listener::open("127.0.0.1:0", settings.clone()).unwrap(),
            settings,
        )
    }

    /// A member at an address that another one is about to leave.
    pub(in crate::net) async fn start_at(address: &str, settings: HubSettings) -> Self {
        loop {
            if let Ok(listener) = Listener::open(address, settings.clone()) {
                return Self::listening(listener, settings);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    fn listening(listener: Listener, settings: HubSettings) -> Self {
        let (member, name) = (settings.identity.member, settings.name);
        let address = listener.local_address().to_string();
        let post = Rc::new(Post::default());
        let hub = Hub::start(listener, Rc::new(SharedPost(Rc::clone(&post)))).unwrap();
        Self {
            id: member,
            name,
            hub,
            post,
            address,
        }
    }

    pub(in crate::net) fn entry(&self) -> PeerAddress {
        PeerAddress {
            id: self.id,
            name: self.name.clone(),
            addresses: vec![self.address.clone()],
        }
    }

    pub(in crate::net) fn knows(&self, others: &[&Self]) {
        self.hub
            .update(others.iter().map(|other| other.entry()).collect());
    }

    pub(in crate::net) fn say(&self, to: MemberId, body: MessageBody) {
        self.hub.send(vec![Envelope {
            to,
            message: Message {
                term: Term(1),
                body,
            },
        }]);
    }

    /// Waits until a failure with `part` in its text was logged.
    pub(in crate::net) async fn reports(&self, part: &str) {
        while !self.hub.reported().iter().any(|text| text.contains(part)) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until a message gets through to `other`.
    pub(in crate::net) async fn reaches(&self, other: &Self) {
        self.post.until(Post::is_up).await;
        let count = |post: &Post| post.bodies_from(self.id).len();
        let before = count(&other.post);
        while count(&other.post) == before {
            self.say(other.id, MessageBody::StaleTerm);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

pub(in crate::net) fn settings(id: u64, security: PeerSecurity) -> HubSettings {
    HubSettings {
        identity: Identity {
            cluster: ClusterId(1),
            member: MemberId(id),
        },
        name: format!("n{id}"),
        host: "127.0.0.1".to_owned(),
        security,
        pacing: pacing(),
        queue_bytes_max: 1024 * 1024,
        seed: id,
        boot: crate::clock::entropy(),
        version_high: VERSION_HIGH,
    }
}

/// Two members that know each other and are connected.
pub(in crate::net) async fn pair() -> (Member, Member) {
    let authority = Authority::new();
    let (one, two) = (
        Member::start(1, authority.member("n1")),
        Member::start(2, authority.member("n2")),
    );
    one.knows(&[&two]);
    two.knows(&[&one]);
    one.reaches(&two).await;
    two.reaches(&one).await;
    (one, two)
}

pub(in crate::net) fn append(bytes: usize) -> MessageBody {
    let data = vec![7; bytes].into();
    let entry = Entry {
        term: Term(1),
        index: LogIndex(1),
        kind: EntryKind::Command,
        data,
    };
    MessageBody::Append {
        prev: LogPosition::default(),
        commit: LogIndex(0),
        entries: vec![entry],
    }
}

pub(in crate::net) fn heartbeat(round: u64) -> MessageBody {
    MessageBody::Heartbeat {
        commit: LogIndex(0),
        round,
    }
}
