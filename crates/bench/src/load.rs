//! The driver: threads, clients, the measured time, and the report.
//!
//! Each thread owns its connections, its clients and its [`Recorder`]; threads share two counters for the
//! progress line and the budget of `--requests`. The coordinator sets the measured time once all are ready.

use super::{
    BenchError,
    args::Settings,
    channel::{CallError, Channel},
    fill::fill,
    process::{self, Usage},
    stats::{Recorder, Report, Spent},
};
use clap::ValueEnum;
use std::{
    cell::{Cell, RefCell},
    future::Future,
    io::Write,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinHandle, LocalSet, spawn_local},
    time::{Instant, sleep_until, timeout_at},
};

/// How long answers may take once the measured time is over.
const DRAIN_TIME: Duration = Duration::from_secs(10);
/// How often there is a progress line.
const PROGRESS_TIME: Duration = Duration::from_secs(1);

/// One client of a workload.
pub(super) trait Operation {
    /// Does one operation and returns its kind, as an index into [`Workload::KINDS`].
    async fn perform(&mut self, channel: &mut Channel) -> Result<usize, CallError>;
}

/// A kind of load.
pub(super) trait Workload: Clone + Send + 'static {
    /// Names of the kinds of operation; the report lists each where there are several.
    const KINDS: &'static [&'static str];
    /// The kinds that stand for the workload, as indices; all of them where none is named.
    const HEADLINE: &'static [usize] = &[];
    /// Whether the key space must be filled first.
    const FILL: bool = false;
    type Client: Operation + 'static;

    /// Makes client number `index`; this may send requests to the server.
    async fn client(
        &self,
        settings: &Settings,
        index: usize,
        channel: &mut Channel,
    ) -> Result<Self::Client, CallError>;

    /// Starts what runs beside the clients of a thread, such as watchers.
    async fn background(&self, _: &Lane, _: &mut [Channel]) -> Result<(), CallError> {
        Ok(())
    }

    /// After the clients have ended: waits for events that have not arrived yet, and returns how many never did.
    async fn drain(&self, _: &Lane) -> Result<(), CallError> {
        Ok(())
    }
}

/// When operations count: those that end from `from` to `to`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) from: Instant,
    pub(super) to: Instant,
}

/// What all threads share.
#[derive(Debug)]
struct Counters {
    done: AtomicU64,
    errors: AtomicU64,
    budget: Option<AtomicI64>,
}

/// A thread's own state, shared by its clients. The window is known once all threads are ready.
#[derive(Clone, Debug)]
pub(super) struct Lane {
    pub(super) settings: Arc<Settings>,
    pub(super) thread: usize,
    recorder: Rc<RefCell<Recorder>>,
    window: Rc<Cell<Option<Window>>>,
    counters: Arc<Counters>,
}

impl Lane {
    /// Counts an operation that ended at `end`, if that is inside the measured time.
    pub(super) fn record(&self, kind: usize, start: Instant, end: Instant) {
        let Some(window) = self.window.get() else {
            return;
        };
        let inside = match self.counters.budget {
            None => window.from <= end && end <= window.to,
            Some(_) => window.from <= start && end <= window.to,
        };
        if inside {
            self.recorder
                .borrow_mut()
                .record(kind, end.saturating_duration_since(start));
        }
        self.counters.done.fetch_add(1, Relaxed);
    }

    /// Counts an error, whenever it came.
    pub(super) fn error(&self, error: &dyn std::fmt::Display) {
        self.recorder.borrow_mut().error(error);
        self.counters.errors.fetch_add(1, Relaxed);
    }

    /// Takes one operation from the budget of `--requests`; false once it is used up.
    fn take(&self, start: Instant, window: Window) -> bool {
        match &self.counters.budget {
            Some(budget) if start >= window.from => budget.fetch_sub(1, Relaxed) > 0,
            Some(_) | None => true,
        }
    }
}

/// What a thread sends back at its end.
struct Finished {
    recorder: Recorder,
    at: Instant,
}

/// Runs a workload from filling the key space to its report.
pub(super) fn run<W: Workload>(settings: &Settings, workload: W) -> Result<Report, BenchError> {
    let settings = Arc::new(settings.clone());
    block_on(coordinate(settings, workload))
}

/// Runs `work` on a current-thread runtime of its own, where it may spawn local tasks.
pub(super) fn block_on<T>(
    work: impl Future<Output = Result<T, BenchError>>,
) -> Result<T, BenchError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(BenchError::Thread)?;
    LocalSet::new().block_on(&runtime, work)
}

async fn coordinate<W: Workload>(
    settings: Arc<Settings>,
    workload: W,
) -> Result<Report, BenchError> {
    if W::FILL && !settings.args.no_fill {
        fill(&settings).await?;
    }
    let budget = settings
        .args
        .requests
        .map(|n| AtomicI64::new(n.cast_signed()));
    let counters = Arc::new(Counters {
        done: 0.into(),
        errors: 0.into(),
        budget,
    });
    let threads = settings.args.threads;
    let (ready, mut readies) = mpsc::channel(threads);
    let mut starts = Vec::new();
    let mut ends = Vec::new();
    for thread in 0..threads {
        let (start, started) = oneshot::channel();
        let (end, ended) = oneshot::channel();
        let settings = Arc::clone(&settings);
        let (counters, workload, ready) = (Arc::clone(&counters), workload.clone(), ready.clone());
        std::thread::Builder::new()
            .name(format!("load-{thread}"))
            .spawn(move || {
                let recorder = Recorder::new(W::KINDS.len()).into();
                let window = Rc::new(Cell::new(None));
                let lane = Lane {
                    settings,
                    thread,
                    recorder: Rc::new(recorder),
                    window,
                    counters,
                };
                let result = block_on(work(lane, workload, ready, started));
                end.send(result).ok(); // nobody listens once the run was given up
            })
            .map_err(BenchError::Thread)?;
        starts.push(start);
        ends.push(ended);
    }
    for _ in 0..threads {
        match readies.recv().await.ok_or(BenchError::ThreadLost)? {
            Ok(()) => {}
            Err(error) => return Err(error),
        }
    }
    let from = Instant::now() + settings.warmup;
    let window = Window {
        from,
        to: from + settings.duration,
    };
    for start in starts {
        start.send(window).map_err(|_| BenchError::ThreadLost)?;
    }
    observe::<W>(&settings, &counters, window, ends).await
}

/// Starts and ends the measured time, prints progress, and makes the report.
async fn observe<W: Workload>(
    settings: &Settings,
    counters: &Arc<Counters>,
    window: Window,
    ends: Vec<oneshot::Receiver<Result<Finished, BenchError>>>,
) -> Result<Report, BenchError> {
    let progress = spawn_local(progress(
        Arc::clone(counters),
        window.to,
        settings.args.quiet,
    ));
    sleep_until(window.from).await;
    let before = (
        process::usage(&settings.args.server_pid)?,
        process::own_usage()?,
    );
    let finished = spawn_local(gather(ends, W::KINDS.len()));
    let early = tokio::select! {
        () = sleep_until(window.to) => false,
        () = all_done(&finished) => true,
    };
    let after = (
        process::usage(&settings.args.server_pid)?,
        process::own_usage()?,
    );
    let Finished { recorder, at } = finished.await.map_err(|_| BenchError::ThreadLost)??;
    progress.abort();
    let to = if early { at.min(window.to) } else { window.to };
    let elapsed = to
        .saturating_duration_since(window.from)
        .max(Duration::from_micros(1));
    let name = settings
        .args
        .workload
        .to_possible_value()
        .expect("no workload is hidden");
    let mut report = Report::new(name.get_name());
    let operations = report.load(&recorder, W::KINDS, W::HEADLINE, elapsed);
    let spent = spent(before, after);
    report.spent(&spent, operations, !settings.args.server_pid.is_empty());
    Ok(report)
}

fn spent(before: (Usage, Usage), after: (Usage, Usage)) -> Spent {
    Spent {
        server_cpu: after.0.cpu.saturating_sub(before.0.cpu),
        server: after.0,
        own_cpu: after.1.cpu.saturating_sub(before.1.cpu),
    }
}

async fn all_done<T>(task: &JoinHandle<T>) {
    while !task.is_finished() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn gather(
    ends: Vec<oneshot::Receiver<Result<Finished, BenchError>>>,
    kinds: usize,
) -> Result<Finished, BenchError> {
    let mut all = Finished {
        recorder: Recorder::new(kinds),
        at: Instant::now(),
    };
    for end in ends {
        let Finished { recorder, at } = end.await.map_err(|_| BenchError::ThreadLost)??;
        all.recorder.add(recorder);
        all.at = all.at.max(at);
    }
    Ok(all)
}

async fn progress(counters: Arc<Counters>, until: Instant, quiet: bool) {
    let started = Instant::now();
    let mut last = (counters.done.load(Relaxed), started);
    while !quiet && Instant::now() < until {
        tokio::time::sleep(PROGRESS_TIME).await;
        let now = (counters.done.load(Relaxed), Instant::now());
        let rate = (now.0 - last.0) as f64 / (now.1 - last.1).as_secs_f64();
        let errors = counters.errors.load(Relaxed);
        let secs = (now.1 - started).as_secs_f64();
        // A progress line that cannot be written is no reason to stop the measurement.
        writeln!(
            std::io::stderr(),
            "{secs:6.1} s  {rate:10.0} ops/s  {errors} errors"
        )
        .ok();
        last = now;
    }
}

/// A load thread: connect, set up, wait for the start, run, drain.
async fn work<W: Workload>(
    lane: Lane,
    workload: W,
    ready: mpsc::Sender<Result<(), BenchError>>,
    started: oneshot::Receiver<Window>,
) -> Result<Finished, BenchError> {
    let set_up = set_up(&lane, &workload).await;
    let (result, clients) = match set_up {
        Ok(clients) => (Ok(()), clients),
        Err(error) => (Err(error), Vec::new()),
    };
    ready
        .send(result)
        .await
        .map_err(|_| BenchError::ThreadLost)?;
    let window = started.await.map_err(|_| BenchError::ThreadLost)?;
    lane.window.set(Some(window));
    let clients: Vec<_> = clients
        .into_iter()
        .map(|(index, client, channel)| {
            let pace = Pace::new(&lane.settings, index, Instant::now());
            spawn_local(run_client(lane.clone(), window, client, channel, pace))
        })
        .collect();
    let mut unanswered = 0_u32;
    for client in clients {
        unanswered += u32::from(timeout_at(window.to + DRAIN_TIME, client).await.is_err());
    }
    let at = Instant::now();
    if unanswered > 0 {
        lane.error(&format!(
            "{unanswered} requests unanswered {DRAIN_TIME:?} after the end"
        ));
    }
    if let Err(error) = workload.drain(&lane).await {
        lane.error(&error);
    }
    // Background tasks may still hold the lane; they end with this thread's `LocalSet`.
    let recorder = lane.recorder.replace(Recorder::new(0));
    Ok(Finished { recorder, at })
}

type ReadyClient<W> = (usize, <W as Workload>::Client, Channel);

async fn set_up<W: Workload>(lane: &Lane, workload: &W) -> Result<Vec<ReadyClient<W>>, BenchError> {
    let (threads, settings) = (lane.settings.args.threads, &lane.settings);
    let mut channels = Vec::new();
    for connection in (lane.thread..settings.connections).step_by(threads) {
        channels.push(Channel::connect(settings, connection).await?);
    }
    workload.background(lane, &mut channels).await?;
    let mut making = Vec::new();
    for (turn, index) in (lane.thread..settings.args.clients)
        .step_by(threads)
        .enumerate()
    {
        let mut channel = channels[turn % channels.len()].clone();
        let (workload, settings) = (workload.clone(), Arc::clone(settings));
        making.push(spawn_local(async move {
            let client = workload.client(&settings, index, &mut channel).await?;
            Ok::<_, CallError>((index, client, channel))
        }));
    }
    let mut clients = Vec::with_capacity(making.len());
    for client in making {
        clients.push(client.await.map_err(|_| BenchError::ThreadLost)??);
    }
    Ok(clients)
}

async fn run_client<O: Operation>(
    lane: Lane,
    window: Window,
    mut operation: O,
    mut channel: Channel,
    mut pace: Option<Pace>,
) {
    let mut start = Instant::now();
    loop {
        if let Some(pace) = &mut pace {
            start = pace.next(window.to).await;
        }
        if start >= window.to || !lane.take(start, window) {
            return;
        }
        let result = operation.perform(&mut channel).await;
        let end = Instant::now();
        match result {
            Ok(kind) => lane.record(kind, start, end),
            Err(error) => {
                lane.error(&error);
                if error.is_final() {
                    return;
                }
            }
        }
        start = end;
    }
}

/// Due times of one client's requests, when `--rate` is given.
#[derive(Debug)]
struct Pace {
    due: Instant,
    every: Duration,
}

impl Pace {
    /// The clients' due times are spread evenly, so that together they send at the rate asked for.
    fn new(settings: &Settings, index: usize, now: Instant) -> Option<Self> {
        let between = Duration::from_secs_f64(1.0 / settings.args.rate?);
        let every = between.mul_f64(settings.args.clients as f64);
        Some(Self {
            due: now + between.mul_f64(index as f64),
            every,
        })
    }

    /// Waits for the next due time (or `until`); returns when the request's latency begins. That is now when
    /// the client was free, since the server has no part in a late timer, and the due time when it was not.
    async fn next(&mut self, until: Instant) -> Instant {
        let due = self.due;
        self.due += self.every;
        if due <= Instant::now() {
            return due;
        }
        sleep_until(due.min(until)).await;
        Instant::now()
    }
}

#[cfg(test)]
mod tests {
    use super::{super::args::tests::settings, *};

    #[tokio::test(start_paused = true)]
    async fn paced_clients_share_the_rate_and_a_late_one_counts_from_when_it_was_due() {
        let settings = settings(&["put", "--clients", "2", "--rate", "10"]).unwrap();
        let now = Instant::now();
        let far = now + Duration::from_secs(100);
        let mut second = Pace::new(&settings, 1, now).unwrap();
        assert_eq!(
            (second.next(far).await - now).as_millis(),
            100,
            "its turn comes second"
        );
        assert_eq!(
            (second.next(far).await - now).as_millis(),
            300,
            "then every 200 ms"
        );
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(
            (second.next(far).await - now).as_millis(),
            500,
            "late, so from the due time"
        );
    }

    #[test]
    fn only_what_ends_inside_the_window_counts() {
        let now = Instant::now();
        let at = |ms| now + Duration::from_millis(ms);
        let lane = |budget: Option<i64>| Lane {
            settings: Arc::new(settings(&["put"]).unwrap()),
            thread: 0,
            recorder: Rc::new(Recorder::new(1).into()),
            window: Rc::new(Cell::new(Some(Window {
                from: at(10),
                to: at(20),
            }))),
            counters: Arc::new(Counters {
                done: 0.into(),
                errors: 0.into(),
                budget: budget.map(AtomicI64::new),
            }),
        };
        let counted = |lane: &Lane| {
            for (start, end) in [(0, 9), (9, 11), (11, 12), (19, 21)] {
                lane.record(0, at(start), at(end));
            }
            let mut report = Report::new("put");
            report.load(
                &lane.recorder.borrow(),
                &["put"],
                &[],
                Duration::from_millis(10),
            )
        };
        assert_eq!(counted(&lane(None)), 2, "9-11 and 11-12 end inside");
        let limited = lane(Some(1));
        assert_eq!(
            counted(&limited),
            1,
            "with a budget also the start must be inside"
        );
        let window = limited.window.get().unwrap();
        assert!(
            limited.take(at(5), window),
            "warm-up takes nothing from the budget"
        );
        assert!(limited.take(at(11), window), "one operation is left");
        assert!(!limited.take(at(12), window), "none is left");
    }
}
