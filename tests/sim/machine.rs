//! A machine: an event loop with a clock of its own. All machines run on the simulation's one thread.
//!
//! Each node of the cluster has a machine, and all clients share another. The clock advances only in [`Machine::run`], so a
//! machine can be late, early, faster or slower than the others. Dropping a machine ends everything on it, as the end of a
//! process does.

use actix::{System, SystemRunner};
use std::{
    cell::Cell,
    pin::pin,
    sync::{
        Arc, Mutex, Once, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// Work that a machine does at an instant of its own clock.
pub(crate) struct Due {
    /// Since the machine began.
    pub(crate) at: Duration,
    pub(crate) work: Box<dyn FnOnce()>,
}

/// Whether a process is alive, as everything outside of it may know. It dies once.
#[derive(Debug, Default)]
pub(crate) struct Life {
    dead: AtomicBool,
    reason: Mutex<Option<String>>,
    died: Notify,
}

impl Life {
    /// Ends the process: nothing it does from now on has an effect outside.
    pub(crate) fn end(&self, reason: &str) {
        if self.dead.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut known = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some(reason.to_owned());
        drop(known);
        self.died.notify_one();
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// Why it died; `None` while it is alive.
    pub(crate) fn reason(&self) -> Option<String> {
        let known = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        known.clone()
    }
}

thread_local! {
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// How many panics this thread has had. The event loop catches a task's panic, but the simulation must stop at it.
pub(crate) fn panics() -> u64 {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.set(PANICS.get() + 1);
            before(panic);
        }));
    });
    PANICS.get()
}

/// An event loop and its clock.
pub(crate) struct Machine {
    system: SystemRunner,
    began: Instant,
    life: Arc<Life>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let system = System::with_tokio_rt(|| {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            builder.enable_time().start_paused(true);
            builder.build().expect("a runtime without sockets")
        });
        let began = system.block_on(async { quorate::internals::clock::now() });
        Self {
            system,
            began,
            life: Arc::default(),
        }
    }

    /// Whether the process on this machine is alive.
    pub(crate) fn life(&self) -> &Arc<Life> {
        &self.life
    }

    /// The instant at which its clock showed zero.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Starts a task. Its first part runs at once, while this is the thread's newest system: actix finds the current arbiter
    /// by that.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.system.block_on(async move {
            tokio::task::spawn_local(task);
            tokio::task::yield_now().await;
        });
    }

    /// Runs until the clock shows `until`, and each item of `due`, which is sorted by time, when it is due. Ends early if the
    /// process dies.
    pub(crate) fn run(&self, until: Duration, due: Vec<Due>) {
        let began = self.began;
        let life = self.life.clone();
        self.system.block_on(async move {
            let mut died = pin!(life.died.notified());
            let mut running = pin!(async {
                for next in due {
                    tokio::time::sleep_until(began + next.at).await;
                    (next.work)();
                }
                tokio::time::sleep_until(began + until).await;
            });
            tokio::select! {
                biased;
                () = &mut died => {}
                () = &mut running => {}
            }
        });
    }

    /// Sets the clock forward to `to` in one jump, as a process experiences that was stopped and resumed: its timers are late.
    pub(crate) fn leap(&self, to: Duration) {
        let began = self.began;
        self.system.block_on(async move {
            let by = (began + to).saturating_duration_since(quorate::internals::clock::now());
            tokio::time::advance(by).await;
        });
    }
}
