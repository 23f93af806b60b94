//! Latencies, counts, and the report made of them.

use super::{BenchError, args::Output, process::Usage};
use hdrhistogram::Histogram;
use std::{fmt::Write, time::Duration};

/// Latencies are kept to three digits between these bounds; longer ones count as the longest.
const LATENCY_NANOS_MIN: u64 = 1_000;
const LATENCY_NANOS_MAX: u64 = 600_000_000_000;
/// Digits kept of a latency.
const LATENCY_DIGITS: u8 = 3;

/// The percentiles reported for each histogram.
const QUANTILES: [(&str, f64); 5] = [
    ("p50", 0.5),
    ("p90", 0.9),
    ("p99", 0.99),
    ("p99.9", 0.999),
    ("max", 1.0),
];

/// Latencies by kind of operation, and errors. Each thread has its own; they are added up at the end.
#[derive(Debug)]
pub(super) struct Recorder {
    latencies: Vec<Histogram<u64>>,
    errors: u64,
    first_error: Option<String>,
}

impl Recorder {
    /// An empty recorder for this many kinds of operation.
    pub(super) fn new(kinds: usize) -> Self {
        let empty =
            Histogram::new_with_bounds(LATENCY_NANOS_MIN, LATENCY_NANOS_MAX, LATENCY_DIGITS)
                .expect("the bounds are constants that the histogram accepts");
        Self {
            latencies: vec![empty; kinds],
            errors: 0,
            first_error: None,
        }
    }

    /// Counts one operation of this kind.
    pub(super) fn record(&mut self, kind: usize, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.latencies[kind].saturating_record(nanos.max(1));
    }

    /// Counts an error; the first one's text is kept.
    pub(super) fn error(&mut self, error: &dyn std::fmt::Display) {
        self.errors += 1;
        self.first_error.get_or_insert_with(|| error.to_string());
    }

    /// Adds the counts of another thread.
    pub(super) fn add(&mut self, other: Self) {
        for (mine, theirs) in self.latencies.iter_mut().zip(other.latencies) {
            mine.add(theirs)
                .expect("all histograms have the same bounds");
        }
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
    }

    /// The histogram of these kinds together, of all where none is named.
    fn histogram(&self, kinds: &[usize]) -> Histogram<u64> {
        let mut sum = Self::new(1).latencies.remove(0);
        for (kind, one) in self.latencies.iter().enumerate() {
            if kinds.is_empty() || kinds.contains(&kind) {
                sum.add(one).expect("all histograms have the same bounds");
            }
        }
        sum
    }
}

/// CPU time and memory that the servers and this program used while the load was measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spent {
    /// CPU time of the servers; zero when none were named.
    pub(super) server_cpu: Duration,
    /// Their memory at the end; zero when none were named.
    pub(super) server: Usage,
    /// CPU time of this program.
    pub(super) own_cpu: Duration,
}

/// The result of a run, ready to be written.
#[derive(Debug, Default)]
pub(super) struct Report {
    workload: String,
    errors: u64,
    first_error: Option<String>,
    /// Names and values, in the order they are written.
    figures: Vec<(String, f64)>,
}

impl Report {
    /// A report without figures.
    pub(super) fn new(workload: &str) -> Self {
        Self {
            workload: workload.into(),
            ..Self::default()
        }
    }

    /// Adds a figure; the name ends in its unit.
    pub(super) fn figure(&mut self, name: &str, value: f64) {
        self.figures.push((name.into(), value));
    }

    /// Counts errors that no [`Recorder`] saw.
    pub(super) fn fail(&mut self, errors: u64, text: String) {
        self.errors += errors;
        self.first_error.get_or_insert(text);
    }

    pub(super) fn errors(&self) -> u64 {
        self.errors
    }

    /// Adds throughput and latencies. `headline` names the kinds that stand for the workload, none
    /// for all. Returns how many operations there were of them.
    pub(super) fn load(
        &mut self,
        recorder: &Recorder,
        kinds: &[&str],
        headline: &[usize],
        elapsed: Duration,
    ) -> u64 {
        self.errors += recorder.errors;
        self.first_error = self
            .first_error
            .take()
            .or_else(|| recorder.first_error.clone());
        let all = recorder.histogram(headline);
        self.figure("seconds", elapsed.as_secs_f64());
        self.latencies("", &all, elapsed);
        if kinds.len() > 1 {
            for (kind, name) in kinds.iter().enumerate() {
                let one = recorder.histogram(&[kind]);
                self.latencies(&format!("{name}_"), &one, elapsed);
            }
        }
        all.len()
    }

    /// Adds the latencies of one kind, without counts or rates.
    pub(super) fn latency(&mut self, prefix: &str, recorder: &Recorder, kind: usize) {
        let histogram = recorder.histogram(&[kind]);
        for (name, quantile) in QUANTILES {
            let nanos = histogram.value_at_quantile(quantile) as f64;
            self.figure(&format!("{prefix}{name}_us"), nanos / 1e3);
        }
    }

    fn latencies(&mut self, prefix: &str, histogram: &Histogram<u64>, elapsed: Duration) {
        let operations = histogram.len() as f64;
        self.figure(&format!("{prefix}operations"), operations);
        self.figure(
            &format!("{prefix}per_second"),
            operations / elapsed.as_secs_f64(),
        );
        for (name, quantile) in QUANTILES {
            let nanos = histogram.value_at_quantile(quantile) as f64;
            self.figure(&format!("{prefix}{name}_us"), nanos / 1e3);
        }
    }

    /// Adds what was spent on `operations`.
    pub(super) fn spent(&mut self, spent: &Spent, operations: u64, servers_named: bool) {
        let per_thousand = |cpu: Duration| cpu.as_secs_f64() * 1e6 / operations.max(1) as f64;
        if servers_named {
            // Milliseconds per 1000 operations and microseconds per operation are the same number.
            self.figure("server_cpu_ms_per_1000_ops", per_thousand(spent.server_cpu));
            self.memory(&spent.server);
        }
        self.figure("own_cpu_ms_per_1000_ops", per_thousand(spent.own_cpu));
    }

    /// Adds the servers' memory.
    pub(super) fn memory(&mut self, server: &Usage) {
        self.figure(
            "server_resident_mib",
            server.resident_bytes as f64 / f64::from(1 << 20),
        );
        self.figure(
            "server_peak_mib",
            server.peak_bytes as f64 / f64::from(1 << 20),
        );
    }

    /// Writes the report to standard output.
    pub(super) fn print(&self, output: Output) -> Result<(), BenchError> {
        let text = match output {
            Output::Text => self.text(),
            Output::Json => self.json(),
        };
        std::io::Write::write_all(&mut std::io::stdout().lock(), text.as_bytes())
            .map_err(BenchError::Output)
    }

    fn text(&self) -> String {
        let mut out = format!("{:<34} {:>14}\n", "workload", self.workload);
        for (name, value) in &self.figures {
            writeln!(out, "{name:<34} {:>14}", number(*value)).expect("strings take any text");
        }
        writeln!(out, "{:<34} {:>14}", "errors", self.errors).expect("strings take any text");
        if let Some(error) = &self.first_error {
            writeln!(out, "first error: {error}").expect("strings take any text");
        }
        out
    }

    fn json(&self) -> String {
        let mut out = format!("{{\"workload\":{}", quoted(&self.workload));
        for (name, value) in &self.figures {
            write!(out, ",{}:{}", quoted(name), number(*value)).expect("strings take any text");
        }
        write!(out, ",\"errors\":{}", self.errors).expect("strings take any text");
        let first = self
            .first_error
            .as_deref()
            .map_or_else(|| "null".into(), quoted);
        writeln!(out, ",\"first_error\":{first}}}").expect("strings take any text");
        out
    }
}

/// A number without needless digits. Infinities and NaN become zero, since JSON cannot express them.
fn number(value: f64) -> String {
    match value {
        value if !value.is_finite() => "0".into(),
        value if value.fract() == 0.0 || value.abs() >= 1e5 => format!("{value:.0}"),
        value => format!("{value:.3}"),
    }
}

fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            c if c < ' ' => write!(out, "\\u{:04x}", c as u32).expect("strings take any text"),
            c => out.push(c),
        }
    }
    out + "\""
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(report: &Report, name: &str) -> f64 {
        report
            .figures
            .iter()
            .find(|(n, _)| n == name)
            .unwrap_or_else(|| panic!("{name}"))
            .1
    }

    #[test]
    fn quantiles_come_out_to_three_digits() {
        let mut recorder = Recorder::new(1);
        for micros in 1..=1_000 {
            recorder.record(0, Duration::from_micros(micros));
        }
        let mut report = Report::new("put");
        let operations = report.load(&recorder, &["put"], &[], Duration::from_secs(2));
        assert_eq!(operations, 1_000, "all counted");
        for (name, micros) in [("p50_us", 500.0), ("p99_us", 990.0), ("max_us", 1_000.0)] {
            let found = figure(&report, name);
            assert!(
                (found / micros - 1.0).abs() < 0.002,
                "{name} is {found}, not {micros}"
            );
        }
        assert!(
            (figure(&report, "per_second") - 500.0).abs() < 1e-9,
            "1000 in two seconds"
        );
    }

    #[test]
    fn threads_add_up_and_the_first_error_is_kept() {
        let (mut one, mut two) = (Recorder::new(2), Recorder::new(2));
        one.record(0, Duration::from_millis(1));
        two.record(1, Duration::from_hours(1));
        two.error(&"boom");
        two.error(&"bang");
        one.add(two);
        let mut report = Report::new("k8s");
        assert_eq!(
            report.load(&one, &["a", "b"], &[], Duration::from_secs(1)),
            2,
            "both"
        );
        assert!(
            (figure(&report, "b_operations") - 1.0).abs() < 1e-9,
            "by kind"
        );
        assert!(
            figure(&report, "b_max_us") >= 6e8 * 0.99,
            "longer than the bound counts as it"
        );
        assert_eq!(
            (report.errors(), report.first_error.as_deref()),
            (2, Some("boom")),
            "errors"
        );
    }

    #[test]
    fn cpu_is_told_per_thousand_operations() {
        let mut report = Report::new("put");
        let server = Usage {
            resident_bytes: 3 << 20,
            ..Usage::default()
        };
        let spent = Spent {
            server_cpu: Duration::from_millis(20),
            server,
            own_cpu: Duration::from_millis(10),
        };
        report.spent(&spent, 2_000, true);
        assert!(
            (figure(&report, "server_cpu_ms_per_1000_ops") - 10.0).abs() < 1e-9,
            "server"
        );
        assert!(
            (figure(&report, "own_cpu_ms_per_1000_ops") - 5.0).abs() < 1e-9,
            "own"
        );
        assert!(
            (figure(&report, "server_resident_mib") - 3.0).abs() < 1e-9,
            "memory"
        );
    }

    #[test]
    fn json_is_one_escaped_object() {
        let mut report = Report::new("put");
        report.figure("p50_us", 1.5);
        report.figure("broken", f64::NAN);
        report.fail(1, "a \"quote\"\n\\".into());
        assert_eq!(
            report.json(),
            "{\"workload\":\"put\",\"p50_us\":1.500,\"broken\":0,\"errors\":1,\
             \"first_error\":\"a \\\"quote\\\"\\u000a\\\\\"}\n",
            "valid JSON"
        );
    }
}
