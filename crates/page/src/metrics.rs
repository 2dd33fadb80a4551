//! What Prometheus scrapes: the newest snapshot and record as gauges and counters.
//!
//! Pure: a text out of data. Ranks one by one are listed up to [`RANKS_LISTED`]; beyond that their spread alone, since
//! thousands of series that are new with every generation are more than a Prometheus should carry. What is not known
//! is left out rather than 0.

use crate::access::Refused;
use crate::model::{Phase, Rank, Snapshot, WorkerState};
use mcl_history::Record;
use mcl_history::Row;
use mcl_history::SERIES;
use prometheus_client::encoding::prometheus_text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use std::sync::atomic::AtomicU64;

/// Ranks up to which each has series of its own.
pub const RANKS_LISTED: usize = 256;
/// As Prometheus wants it named.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

type Number = Gauge<f64, AtomicU64>;
type Total = Counter<f64, AtomicU64>;
type Labels = Vec<(&'static str, String)>;

/// What the page knows of itself.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Own {
    /// Who looks on.
    pub viewers: usize,
    /// Requests that were answered.
    pub requests: u64,
    /// In the order of [`Refused::ALL`].
    pub refused: [u64; Refused::ALL.len()],
    /// Processor time of the process, seconds.
    pub cpu_s: Option<f64>,
    /// Its memory, bytes.
    pub memory: Option<u64>,
}

/// The text that is scraped; `snapshot`: none while the coordinator does not answer.
pub fn text(snapshot: Option<&Snapshot>, record: &Record, own: &Own) -> String {
    let mut page = Registry::with_prefix("mcl");
    if let Some(snapshot) = snapshot {
        job(&mut page, snapshot);
        workers(&mut page, snapshot);
        ranks(&mut page, &snapshot.ranks);
    }
    run(&mut page, record);
    evaluation(&mut page, record);
    if let Some(row) = record.history.last() {
        step(&mut page, row, record);
    }
    of_itself(&mut page, own);
    let mut process = Registry::with_prefix("process");
    if let Some(seconds) = own.cpu_s {
        total(&mut process, "cpu_seconds", "Processor time of the coordinator", seconds);
    }
    if let Some(bytes) = own.memory {
        number(&mut process, "resident_memory_bytes", "Memory of the coordinator", float(bytes));
    }
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = encode(&mut text, &page).and_then(|()| encode(&mut text, &process));
    text
}

fn number(registry: &mut Registry, name: &str, help: &str, value: f64) {
    let gauge = Number::default();
    gauge.set(value);
    registry.register(name, help, gauge);
}

fn total(registry: &mut Registry, name: &str, help: &str, value: f64) {
    let counter = Total::default();
    counter.inc_by(value.max(0.0));
    registry.register(name, help, counter);
}

fn family(registry: &mut Registry, name: &str, help: &str, values: impl IntoIterator<Item = (Labels, f64)>) {
    let family = Family::<Labels, Number>::default();
    for (labels, value) in values {
        family.get_or_create(&labels).set(value);
    }
    registry.register(name, help, family);
}

#[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
const fn float(count: u64) -> f64 {
    count as f64
}

fn label(key: &'static str, value: &str) -> Labels {
    vec![(key, value.to_owned())]
}

fn job(page: &mut Registry, s: &Snapshot) {
    let build = label("version", &s.build);
    family(page, "build_info", "The coordinator's version", [(build, 1.0)]);
    if let Some(run) = &s.run {
        family(page, "run_info", "The run that is run, or was last", [(label("run", run), 1.0)]);
    }
    let phases = Phase::ALL.map(|p| (label("phase", p.name()), f64::from(u8::from(p == s.phase))));
    family(page, "phase", "1 for what the job is doing", phases);
    let held = f64::from(u8::from(s.held));
    number(page, "paused", "1 where somebody paused the job", held);
    number(page, "term", "The coordinator's reign", float(s.term));
    number(page, "generation", "The live generation, or the last one", float(s.generation));
    number(page, "committed_steps", "Steps that stand", float(s.committed));
    number(page, "planned_steps", "Steps of the run", float(s.total));
    number(page, "epoch_steps", "Steps of an epoch", float(s.steps_per_epoch));
    number(page, "data_wait_ratio", "Share of a step that waits for pictures", s.data_wait_share);
    number(page, "queued_jobs", "Jobs that wait for their turn", float(s.queue.len() as u64));
    if let Some(step) = s.last_checkpoint {
        number(page, "checkpoint_step", "Steps before the newest visible checkpoint", float(step));
    }
}

fn workers(page: &mut Registry, s: &Snapshot) {
    let count = |state| s.workers.iter().filter(|w| w.state == state).count() as u64;
    let counts = WorkerState::ALL.map(|state| (label("state", state.name()), float(count(state))));
    family(page, "workers", "Known workers by what they are doing", counts);
}

fn ranks(page: &mut Registry, ranks: &[Rank]) {
    number(page, "ranks", "Ranks of the live generation", float(ranks.len() as u64));
    let slow = ranks.iter().filter(|r| r.straggler).count() as u64;
    number(page, "straggling_ranks", "Ranks that the others wait for", float(slow));
    let mut times: Vec<f64> = ranks.iter().map(|r| r.step_s).collect();
    times.sort_by(f64::total_cmp);
    let last = times.len().saturating_sub(1);
    let percentile = |percent: usize| {
        let value = times.get(last * percent / 100).copied()?;
        Some((label("percentile", &percent.to_string()), value))
    };
    let spread = [0, 50, 95, 100].into_iter().filter_map(percentile);
    family(page, "ranks_step_seconds", "Step time over ranks, means over about 20 steps", spread);
    if ranks.len() > RANKS_LISTED {
        return;
    }
    let of = |pick: fn(&Rank) -> f64| {
        ranks.iter().map(move |r| {
            let labels = vec![
                ("rank", r.rank.to_string()),
                ("worker", r.worker.clone()),
                ("device", r.device.clone()),
            ];
            (labels, pick(r))
        })
    };
    family(page, "rank_step_seconds", "Step time of a rank, a mean over about 20 steps", of(|r| r.step_s));
    family(page, "rank_data_wait_seconds", "Of it, waiting for pictures", of(|r| r.data_s));
    family(page, "rank_collective_seconds", "Of it, in collectives", of(|r| r.collective_s));
}

fn run(page: &mut Registry, record: &Record) {
    total(page, "skipped_steps", "Steps whose update was skipped", float(record.skipped));
    total(page, "generation_failures", "Generations that ended by a failure", float(record.failures));
    let Some(run) = &record.run else { return };
    if let (Some(chance), Some(floor)) = (run.chance, run.floor) {
        number(page, "loss_chance", "The loss of guessing", chance);
        number(page, "loss_floor", "The lowest loss that there is", floor);
    }
    number(page, "lanes", "Lanes of the job", f64::from(run.lanes));
    if let Some(newest) = record.checkpoints().next()
        && let Some(time) = newest.time
    {
        number(page, "checkpoint_timestamp_seconds", "When the newest checkpoint became visible", time);
    }
}

fn evaluation(page: &mut Registry, record: &Record) {
    let Some(newest) = record.evaluations().next() else { return };
    let mut shares = Vec::new();
    for a in &newest.accuracies {
        for (features, share) in [("trained", a.trained), ("random", a.random), ("pixels", a.pixels)] {
            let labels =
                vec![("probe", a.probe.clone()), ("on", a.on.clone()), ("features", features.to_owned())];
            shares.push((labels, share));
        }
    }
    let help = "Objects told right in the newest evaluation, by frozen features";
    family(page, "evaluation_accuracy_ratio", help, shares);
    number(page, "evaluation_step", "Steps before the newest evaluation", float(newest.step));
}

fn step(page: &mut Registry, row: &Row, record: &Record) {
    const HELP: [&str; SERIES.len()] = [
        "Loss of the newest step",
        "Learning rate",
        "Momentum of the target encoder",
        "Norm of the gradients before clipping",
        "Pictures over the slowest rank's time",
        "Longest wait for pictures on any rank in the newest step",
        "The slowest rank's time in the newest step",
    ];
    const NAMES: [&str; SERIES.len()] = [
        "loss",
        "learning_rate",
        "momentum_ratio",
        "gradient_norm",
        "images_per_second",
        "data_wait_seconds",
        "step_seconds",
    ];
    let bucket = mcl_history::Bucket::of(row);
    for ((name, help), span) in NAMES.iter().zip(HELP).zip(&bucket.spans) {
        if let Some(value) = span.mean() {
            number(page, name, help, value);
        }
    }
    let names = record.run.iter().flat_map(|r| &r.levels).map(Some).chain(std::iter::repeat(None));
    let named = row
        .loss_per_level
        .iter()
        .enumerate()
        .zip(names)
        .map(|((at, loss), name)| (label("level", name.unwrap_or(&at.to_string())), *loss));
    family(page, "level_loss", "Loss of the newest step by level", named);
    number(page, "epoch", "Epoch of the newest step", float(row.epoch));
    number(page, "step_timestamp_seconds", "When the newest step was committed", row.time);
}

fn of_itself(page: &mut Registry, own: &Own) {
    number(page, "page_viewers", "Who looks at the page", float(own.viewers as u64));
    total(page, "page_requests", "Requests that the page answered", float(own.requests));
    let refused = Family::<Labels, Total>::default();
    for (why, count) in Refused::ALL.iter().zip(own.refused) {
        refused.get_or_create(&label("why", why.name())).inc_by(float(count));
    }
    page.register("page_refused", "Requests and connections that the page refused", refused);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::row;
    use crate::tables::tests::cluster;
    use mcl_history::{Accuracy, Evaluation, Happening, Run, What};
    use std::collections::{BTreeMap, BTreeSet};

    fn record() -> Record {
        let mut record = Record::default();
        let run = Run {
            name: "r".to_owned(),
            lanes: 4,
            levels: vec!["1".to_owned(), "1/2".to_owned()],
            chance: Some(9.0),
            floor: Some(1.0),
            ..Run::default()
        };
        let began = What::Began { run: Box::new(run), metrics: "m".into(), committed: 0, checkpoint: None };
        record.take(Happening { time: 0.0, what: began });
        (0..5).for_each(|s| record.take(Happening { time: 1.0, what: What::Committed(Box::new(row(s))) }));
        record.take(Happening { time: 7.5, what: What::Checkpoint { step: 4 } });
        for (step, trained) in [(2, 0.25), (4, 0.75)] {
            let (probe, on) = ("knn".to_owned(), "scenes".to_owned());
            let accuracies = vec![Accuracy { probe, on, trained, random: 0.125, pixels: 0.5 }];
            let encoder = "online".to_owned();
            let evaluation = Box::new(Evaluation { step, encoder, accuracies, seconds: 2.0, time: 8.0 });
            let what = What::Evaluated { run: "r".to_owned(), evaluation };
            record.take(Happening { time: 8.0, what });
        }
        record
    }

    fn snapshot(workers: u32) -> Snapshot {
        Snapshot {
            run: Some("a \"run\"\\\n".to_owned()),
            phase: Phase::Training,
            committed: 5,
            total: 10,
            last_checkpoint: Some(4),
            build: "0.1.0".to_owned(),
            ..cluster(workers)
        }
    }

    fn own() -> Own {
        Own { viewers: 2, requests: 9, refused: [1; 9], cpu_s: Some(1.5), memory: Some(1 << 20) }
    }

    /// Reads the text format by its rules: every sample below the HELP and TYPE of its name, once a set of labels.
    fn parse(text: &str) -> BTreeMap<String, f64> {
        let (mut types, mut helped) = (BTreeMap::new(), BTreeSet::new());
        let mut samples = BTreeMap::new();
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect(line);
                assert!(!help.is_empty() && helped.insert(name.to_owned()), "{line}");
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect(line);
                assert!(helped.contains(name), "no help before {line}");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{line}");
            } else {
                let (series, value) = line.rsplit_once(' ').expect(line);
                let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
                assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name}");
                assert!(types.contains_key(name), "no type before {line}");
                assert!(labels.ends_with('}'), "{line}");
                let value = value.parse().expect(line);
                assert!(samples.insert(series.to_owned(), value).is_none(), "twice: {line}");
            }
        }
        samples
    }

    #[test]
    fn the_text_is_read_back_with_the_numbers_that_went_in() {
        let samples = parse(&text(Some(&snapshot(10)), &record(), &own()));
        for (series, value) in [
            ("mcl_committed_steps", 5.0),
            ("mcl_planned_steps", 10.0),
            ("mcl_phase{phase=\"training\"}", 1.0),
            ("mcl_phase{phase=\"waiting\"}", 0.0),
            ("mcl_run_info{run=\"a \\\"run\\\"\\\\\\n\"}", 1.0),
            ("mcl_loss", 2.0),
            ("mcl_level_loss{level=\"1\"}", 4.0),
            ("mcl_level_loss{level=\"1/2\"}", -4.0),
            ("mcl_loss_chance", 9.0),
            ("mcl_gradient_norm", 4.0),
            ("mcl_skipped_steps_total", 1.0),
            ("mcl_workers{state=\"lost\"}", 1.0),
            ("mcl_workers{state=\"training\"}", 9.0),
            ("mcl_straggling_ranks", 1.0),
            ("mcl_ranks_step_seconds{percentile=\"100\"}", 2.0),
            ("mcl_rank_step_seconds{rank=\"7\",worker=\"w0003\",device=\"cuda:1\"}", 2.0),
            ("mcl_checkpoint_step", 4.0),
            ("mcl_checkpoint_timestamp_seconds", 7.5),
            ("mcl_evaluation_step", 4.0),
            ("mcl_evaluation_accuracy_ratio{probe=\"knn\",on=\"scenes\",features=\"trained\"}", 0.75),
            ("mcl_evaluation_accuracy_ratio{probe=\"knn\",on=\"scenes\",features=\"random\"}", 0.125),
            ("mcl_page_refused_total{why=\"token\"}", 1.0),
            ("process_cpu_seconds_total", 1.5),
        ] {
            assert_eq!(samples.get(series), Some(&value), "{series}");
        }
        // Labels that mean something else to Prometheus; `promtool check metrics` refuses them.
        let reserved = ["{quantile=", ",quantile=", "{le=", ",le="];
        assert!(!samples.keys().any(|s| reserved.iter().any(|label| s.contains(label))), "{samples:?}");
    }

    #[test]
    fn thousands_of_ranks_do_not_become_thousands_of_series() {
        let samples = parse(&text(Some(&snapshot(1000)), &record(), &own()));
        assert!(samples.len() < 100, "{}", samples.len());
        assert_eq!(samples.get("mcl_ranks"), Some(&2000.0));
    }

    #[test]
    fn what_is_not_known_is_left_out() {
        let samples = parse(&text(None, &Record::default(), &Own::default()));
        assert!(
            !samples.keys().any(|s| s.starts_with("mcl_loss") || s.starts_with("process")),
            "{samples:?}"
        );
        assert_eq!(samples.get("mcl_page_viewers"), Some(&0.0));
        let row = Row { loss: None, loss_per_level: Vec::new(), ..row(0) };
        let mut record = Record::default();
        record.take(Happening { time: 0.0, what: What::Committed(Box::new(row)) });
        assert!(!parse(&text(None, &record, &own())).contains_key("mcl_loss"));
    }

    #[test]
    fn the_dashboard_and_the_alerts_name_only_metrics_that_there_are() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy");
        let samples = parse(&text(Some(&snapshot(10)), &record(), &own()));
        let there: BTreeSet<&str> = samples.keys().map(|s| s.split('{').next().unwrap_or(s)).collect();
        for file in ["grafana/mcl.json", "prometheus/alerts.yml"] {
            let text = std::fs::read_to_string(format!("{folder}/{file}")).expect(file);
            let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            let named: BTreeSet<&str> =
                words.filter(|w| w.starts_with("mcl_") || w.starts_with("process_")).collect();
            assert!(named.len() > 3, "{file}: {named:?}");
            let missing: Vec<_> = named.difference(&there).collect();
            assert!(missing.is_empty(), "{file} names {missing:?}");
        }
    }
}
