//! A machine: an event loop of its own on a clock of its own, both on the simulation's one thread.
//!
//! Each node of the cluster lives on one machine, and all clients together on another. The clock stands still unless
//! [`Machine::run`] moves it, so a machine can be late, early, faster or slower than the others, and dropping one ends
//! everything on it, as the end of a process does.

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

/// Something that happens on a machine at an instant of its own clock.
pub(crate) struct Due {
    /// Since the machine began.
    pub(crate) at: Duration,
    pub(crate) work: Box<dyn FnOnce()>,
}

/// Whether a process lives, as all that is outside of it may know. It dies once.
#[derive(Debug, Default)]
pub(crate) struct Life {
    dead: AtomicBool,
    reason: Mutex<Option<String>>,
    died: Notify,
}

impl Life {
    /// Ends the process: nothing it does from now on reaches anybody.
    pub(crate) fn end(&self, reason: &str) {
        if self.dead.swap(true, Ordering::Relaxed) {
            return;
        }
        let mut told = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        *told = Some(reason.to_owned());
        drop(told);
        self.died.notify_one();
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    /// Why it died, if it did.
    pub(crate) fn reason(&self) -> Option<String> {
        let told = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        told.clone()
    }
}

thread_local! {
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// Panics on this thread so far. The event loop catches those of tasks; a simulation must not go on after one.
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

    /// The life of what runs here.
    pub(crate) fn life(&self) -> &Arc<Life> {
        &self.life
    }

    /// When its clock showed zero.
    pub(crate) fn began(&self) -> Instant {
        self.began
    }

    /// Begins something here that need not end. Its first part runs at once, while this is still the thread's newest system:
    /// actix knows the current arbiter by that.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.system.block_on(async move {
            tokio::task::spawn_local(task);
            tokio::task::yield_now().await;
        });
    }

    /// Runs until the clock shows `until`. What is due comes at its time; `due` is in order of time. Ends early with the life.
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

    /// Sets the clock forward to `to` at one stroke, as for a process that was stopped and goes on: all that was due
    /// meanwhile is late.
    pub(crate) fn leap(&self, to: Duration) {
        let began = self.began;
        self.system.block_on(async move {
            let by = (began + to).saturating_duration_since(quorate::internals::clock::now());
            tokio::time::advance(by).await;
        });
    }
}
