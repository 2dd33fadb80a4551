//! Frozen features against random weights and raw pixels: k nearest neighbours or a linear probe, on object crops and
//! scene boxes.
//!
//! Never accept learning on the loss alone: colour or texture shortcuts make it fall while features stay near
//! random. So three rows are always printed side by side: the checkpoint's weights, random weights (with their
//! norms' statistics formed on the same pictures), and normalised grey pixels.

mod extract;
mod judge;
mod knn;
mod lbfgs;
mod level;
mod linear;
mod logistic;
mod table;

use crate::engine;
use crate::features::{self, FeaturesArguments};
use crate::frozen::{self, FrozenArguments, Which};
use crate::pictures::{BoxedPicture, Boxes, Classes};
use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use extract::{Extractor, Features, Look, Whose};
use indicatif::{ProgressBar, ProgressStyle};
use judge::{Judge, Verdict};
use level::Level;
use mcl_model::Model;
use mcl_terminal::{say, tell};
use mcl_types::Seed;
use std::path::PathBuf;
use table::{Comparison, Results};
use tch::{Device, Kind};

/// What object crops are told by.
const CROPS: [Level; 1] = [Level::C5];
/// What boxes of scenes are told by, side by side.
const SCENES: [Level; 3] = [Level::C3, Level::C4, Level::C5];

#[derive(Debug, Args)]
pub(crate) struct EvalArguments {
    #[command(subcommand)]
    command: EvalCommand,
}

#[derive(Debug, Subcommand)]
enum EvalCommand {
    /// k nearest neighbours.
    Knn(KnnArguments),
    /// A linear probe.
    Linear(LinearArguments),
    /// Both, from one look at the pictures.
    Both(BothArguments),
    /// Feature maps of one picture, as a file.
    Features(FeaturesArguments),
}

#[derive(Debug, Args)]
struct KnnArguments {
    #[command(flatten)]
    judged: JudgedArguments,
    #[command(flatten)]
    neighbours: NeighboursArguments,
}

#[derive(Debug, Args)]
struct LinearArguments {
    #[command(flatten)]
    judged: JudgedArguments,
    #[command(flatten)]
    probe: ProbeArguments,
}

#[derive(Debug, Args)]
struct BothArguments {
    #[command(flatten)]
    judged: JudgedArguments,
    #[command(flatten)]
    neighbours: NeighboursArguments,
    #[command(flatten)]
    probe: ProbeArguments,
}

#[derive(Debug, Args)]
struct NeighboursArguments {
    /// Neighbours.
    #[arg(long, default_value_t = 20)]
    k: i64,
}

impl NeighboursArguments {
    const fn judge(&self) -> Judge {
        Judge::Knn { k: self.k }
    }
}

#[derive(Debug, Args)]
struct ProbeArguments {
    /// Which fifth of the training pictures chooses the penalty.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl ProbeArguments {
    const fn judge(&self) -> Judge {
        Judge::Linear { seed: Seed::new(self.seed) }
    }
}

/// Whose features are judged, on what.
#[derive(Debug, Args)]
struct JudgedArguments {
    #[command(flatten)]
    weights: FrozenArguments,
    /// Objects to learn from: a folder with `annotations.json`, or a data set with labels.
    #[arg(long)]
    train: PathBuf,
    /// Objects to classify.
    #[arg(long)]
    test: PathBuf,
    /// Folder of scenes: even pictures are learned from, odd ones classified, box by box.
    #[arg(long)]
    scenes: Option<PathBuf>,
    /// Scale scenes to this shorter side in pixels, as detectors do; without it they are looked at as they are.
    #[arg(long, value_name = "PIXELS", requires = "scenes", value_parser = clap::value_parser!(u32).range(32..=4096))]
    short_side: Option<u32>,
    /// Also each level of backbone and pyramid alone.
    #[arg(long)]
    levels: bool,
    /// Answer as one JSON object.
    #[arg(long)]
    json: bool,
    /// Let everything else on this machine go first, and end with standard input.
    #[arg(long)]
    background: bool,
}

pub(crate) fn run(a: &EvalArguments) -> Result<()> {
    engine::set_threads(2);
    match &a.command {
        EvalCommand::Knn(a) => compare(&a.judged, &[a.neighbours.judge()]),
        EvalCommand::Linear(a) => compare(&a.judged, &[a.probe.judge()]),
        EvalCommand::Both(a) => compare(&a.judged, &[a.neighbours.judge(), a.probe.judge()]),
        EvalCommand::Features(a) => features::run(a),
    }
}

/// One side of a comparison.
struct Side {
    pictures: Vec<BoxedPicture>,
    labels: Vec<i64>,
}

/// What is judged on what.
struct Pair {
    train: Side,
    test: Side,
    classes: i64,
}

impl Pair {
    fn of(train: Side, test: Side, classes: &Classes) -> Result<Self> {
        if train.labels.is_empty() || test.labels.is_empty() {
            bail!(
                "no boxes to compare: {} to learn from and {} to classify, expected some of both",
                train.labels.len(),
                test.labels.len()
            );
        }
        Ok(Self { train, test, classes: classes.count() })
    }

    /// Two folders.
    fn objects(train: &Boxes, test: &Boxes) -> Result<Self> {
        let (classes, warning) = Classes::of(train, test)?;
        if let Some(warning) = warning {
            tell!("warning: {warning}");
        }
        let side = |boxes: &Boxes| {
            let pictures = boxes.pictures().to_vec();
            anyhow::Ok(Side { labels: boxes.labels(&pictures, &classes)?, pictures })
        };
        Self::of(side(train)?, side(test)?, &classes)
    }

    /// Even and odd pictures of one folder.
    fn scenes(scenes: &Boxes) -> Result<Self> {
        let (classes, _) = Classes::of(scenes, scenes)?;
        let side = |remainder: usize| {
            let pictures: Vec<BoxedPicture> =
                scenes.pictures().iter().skip(remainder).step_by(2).cloned().collect();
            anyhow::Ok(Side { labels: scenes.labels(&pictures, &classes)?, pictures })
        };
        Self::of(side(0)?, side(1)?, &classes)
    }
}

/// How far a process steps back that is to let others go first.
const NICE: i32 = 10;

fn compare(a: &JudgedArguments, judges: &[Judge]) -> Result<()> {
    if a.background {
        rustix::process::nice(NICE).context("lowering the priority")?;
        // Whoever asked is gone.
        std::thread::spawn(|| {
            let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            mcl_collective::exit_at_once(1);
        });
    }
    let (job, trained) = frozen::load(&a.weights)?;
    let objects = Pair::objects(&Boxes::load(&a.train)?, &Boxes::load(&a.test)?)?;
    let scenes = match &a.scenes {
        Some(folder) => Some(Pair::scenes(&Boxes::annotated(folder)?)?),
        None => None,
    };
    let levels = if a.levels { Some(levels(&trained, a.weights.encoder)?) } else { None };
    let mut random = Model::new(trained.spec().clone(), Kind::Float, Device::Cpu)?;
    random.initialize(job.seed())?;
    let passes = bar("passes");
    let look = Look {
        which: a.weights.encoder,
        size: job.model().image_size,
        short_side: a.short_side,
        bar: &passes,
    };
    let finest = levels.iter().flatten().filter_map(|l| l.output()).min();
    look.warm_up(&mut random, &objects.train.pictures, finest)?;
    let extractor = Extractor { models: [&trained, &random], look };
    let results = judged(judges, &extractor, objects, scenes, levels.as_deref())?;
    if a.json {
        say!("{}", table::json(&results))?;
    } else {
        say!("{}", table::text(&results))?;
    }
    Ok(())
}

/// Stages, and outputs of the pyramid whose norms saw data; what is left out is said.
fn levels(trained: &Model, which: Which) -> Result<Vec<Level>> {
    if which.of(trained).fpn().is_err() {
        return Ok(Level::STAGES.to_vec());
    }
    let (outputs, left_out) = level::seen_outputs(&frozen::unseen(trained, which)?, which.prefix());
    if let Some(left_out) = left_out {
        tell!("{left_out}{}", which.whole_pyramid());
    }
    Ok([&Level::STAGES[..], &outputs].concat())
}

/// Features of both sides.
struct Extracted {
    train: Features,
    test: Features,
    classes: i64,
}

impl Extracted {
    fn verdict(&self, judge: Judge, whose: Whose, levels: &[Level], bar: &ProgressBar) -> Result<Verdict> {
        let names: Vec<&str> = levels.iter().map(|l| l.name()).collect();
        let what = format!("{}, {}", whose.name(), names.join(" "));
        let (train, test) = (self.train.rows(whose, levels)?, self.test.rows(whose, levels)?);
        judge.verdict(&what, &train, &test, self.classes, bar)
    }

    /// Trained and random weights by some levels.
    fn weights(&self, judge: Judge, levels: &[Level], bar: &ProgressBar) -> Result<Comparison> {
        let of = |whose| self.verdict(judge, whose, levels, bar);
        Ok(Comparison { trained: of(Whose::Trained)?, random: of(Whose::Random)?, pixels: None })
    }

    /// The same, and raw pixels.
    fn all(&self, judge: Judge, levels: &[Level], bar: &ProgressBar) -> Result<Comparison> {
        let pixels =
            judge.verdict("raw pixels", &self.train.pixels(), &self.test.pixels(), self.classes, bar)?;
        Ok(Comparison { pixels: Some(pixels), ..self.weights(judge, levels, bar)? })
    }
}

/// All features, then all verdicts.
fn judged(
    judges: &[Judge],
    extractor: &Extractor<'_>,
    objects: Pair,
    scenes: Option<Pair>,
    levels: Option<&[Level]>,
) -> Result<Vec<Results>> {
    // Levels are those of boxes in scenes, where there are scenes.
    let of_crops = levels.filter(|_| scenes.is_none()).unwrap_or(&CROPS);
    let of_boxes = levels.unwrap_or(&SCENES);
    let (train, test) = (objects.train, objects.test);
    let objects = Extracted {
        train: extractor.crops(&train.pictures, train.labels, of_crops)?,
        test: extractor.crops(&test.pictures, test.labels, of_crops)?,
        classes: objects.classes,
    };
    let of_scenes = |Pair { train, test, classes }: Pair| {
        let train = extractor.boxes(&train.pictures, train.labels, of_boxes)?;
        let test = extractor.boxes(&test.pictures, test.labels, of_boxes)?;
        anyhow::Ok(Extracted { train, test, classes })
    };
    let scenes = scenes.map(of_scenes).transpose()?;
    extractor.look.bar.finish_and_clear();
    let bar = bar("fits");
    let verdicts = 3 * (1 + u64::from(scenes.is_some())) + 2 * levels.map_or(0, |l| l.len() as u64);
    bar.set_length(verdicts * judges.iter().map(|judge| judge.work()).sum::<u64>());
    let boxes = scenes.as_ref().unwrap_or(&objects);
    let results = judges.iter().map(|judge| {
        let alone = |level: &Level| anyhow::Ok((*level, boxes.weights(*judge, &[*level], &bar)?));
        anyhow::Ok(Results {
            judge: *judge,
            objects: objects.all(*judge, &CROPS, &bar)?,
            scenes: scenes.as_ref().map(|scenes| scenes.all(*judge, &SCENES, &bar)).transpose()?,
            short_side: extractor.look.short_side,
            levels: levels.map(|levels| levels.iter().map(alone).collect::<Result<_>>()).transpose()?,
        })
    });
    let results = results.collect::<Result<_>>()?;
    bar.finish_and_clear();
    Ok(results)
}

/// A bar that counts, where it can be drawn.
fn bar(what: &str) -> ProgressBar {
    if !mcl_terminal::has_bars() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    if let Ok(style) =
        ProgressStyle::with_template(&format!("{{bar:30}} {{pos}}/{{len}} {what}  ETA {{eta}}"))
    {
        bar.set_style(style);
    }
    bar
}
