//! Verdicts side by side, as a table and as JSON.

use super::judge::{Judge, Verdict};
use super::level::Level;
use serde_json::{Map, Value, json};
use std::fmt::Write as _;

/// Columns that a row's title takes.
const TITLE: usize = 23;

/// Features of three kinds under one judge; pixels have no levels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Comparison {
    pub(super) trained: Verdict,
    pub(super) random: Verdict,
    pub(super) pixels: Option<Verdict>,
}

impl Comparison {
    fn columns(&self) -> impl Iterator<Item = (&'static str, Verdict)> {
        let pixels = self.pixels.map(|verdict| ("pixels", verdict));
        [("trained", self.trained), ("random", self.random)].into_iter().chain(pixels)
    }

    fn json(&self, value: impl Fn(Verdict) -> Value) -> Value {
        self.columns().map(|(name, verdict)| (name.to_owned(), value(verdict))).collect::<Map<_, _>>().into()
    }
}

/// All that was judged.
#[derive(Debug)]
pub(super) struct Results {
    pub(super) judge: Judge,
    pub(super) objects: Comparison,
    pub(super) scenes: Option<Comparison>,
    /// Shorter side that scenes were scaled to.
    pub(super) short_side: Option<u32>,
    /// One map each, of the boxes of scenes where there are scenes, else of object crops; none where they were not asked
    /// for.
    pub(super) levels: Option<Vec<(Level, Comparison)>>,
}

/// One object: what one judge found, or of several what each found under its name.
pub(super) fn json(results: &[Results]) -> Value {
    match results {
        [one] => one.json(),
        all => all.iter().map(|one| (one.judge.name().to_owned(), one.json())).collect::<Map<_, _>>().into(),
    }
}

/// Lines for a person.
pub(super) fn text(results: &[Results]) -> String {
    results.iter().map(Results::text).collect::<Vec<_>>().join("\n")
}

impl Results {
    /// One object: accuracies, and what the judge was set to.
    fn json(&self) -> Value {
        let mut answer = self.each(|verdict| json!(verdict.accuracy));
        match self.judge {
            Judge::Knn { k } => answer.insert("k".to_owned(), json!(k)),
            Judge::Linear { .. } => {
                let penalties = self.each(|verdict| json!(verdict.penalty));
                answer.insert("penalty".to_owned(), penalties.into())
            }
        };
        if let Some(short_side) = self.short_side {
            answer.insert("short_side".to_owned(), json!(short_side));
        }
        answer.into()
    }

    fn each(&self, value: impl Fn(Verdict) -> Value + Copy) -> Map<String, Value> {
        let mut all = Map::new();
        all.insert("objects".to_owned(), self.objects.json(value));
        all.insert("scenes".to_owned(), self.scenes.map_or(Value::Null, |s| s.json(value)));
        if let Some(levels) = &self.levels {
            let levels: Map<_, _> =
                levels.iter().map(|(level, c)| (level.name().to_owned(), c.json(value))).collect();
            all.insert("levels".to_owned(), levels.into());
        }
        all
    }

    fn text(&self) -> String {
        let head = match self.judge {
            Judge::Knn { k } => format!("kNN (k = {k})"),
            Judge::Linear { .. } => "linear probe".to_owned(),
        };
        let mut text = format!("{head:<TITLE$} trained  random  pixels");
        row(&mut text, "object crops, C5", &self.objects);
        if let Some(scenes) = &self.scenes {
            row(&mut text, "scene boxes, C3-C5", scenes);
        }
        let what = if self.scenes.is_some() { "scene boxes" } else { "object crops" };
        for (level, comparison) in self.levels.iter().flatten() {
            row(&mut text, &format!("{what}, {}", level.name().to_uppercase()), comparison);
        }
        text
    }
}

fn row(text: &mut String, title: &str, comparison: &Comparison) {
    let _ = write!(text, "\n  {title:<width$}", width = TITLE - 2);
    for (_, verdict) in comparison.columns() {
        let _ = write!(text, " {:>7.3}", verdict.accuracy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_types::Seed;

    fn results(judge: Judge, levels: bool) -> Results {
        let verdict =
            |accuracy| Verdict { accuracy, penalty: matches!(judge, Judge::Linear { .. }).then_some(0.01) };
        let compared = |pixels| Comparison { trained: verdict(0.5), random: verdict(0.25), pixels };
        Results {
            judge,
            objects: compared(Some(verdict(0.125))),
            scenes: None,
            short_side: None,
            levels: levels.then(|| vec![(Level::C2, compared(None))]),
        }
    }

    #[test]
    fn json_holds_what_it_held_before_there_were_levels() {
        let objects = json!({ "trained": 0.5, "random": 0.25, "pixels": 0.125 });
        let plain = results(Judge::Knn { k: 20 }, false).json();
        assert_eq!(plain, json!({ "k": 20, "objects": objects, "scenes": null }));
        let linear = results(Judge::Linear { seed: Seed::new(0) }, true).json();
        assert_eq!(linear["objects"], objects);
        assert_eq!(linear["levels"], json!({ "c2": { "trained": 0.5, "random": 0.25 } }));
        assert_eq!(linear["penalty"]["objects"]["pixels"], 0.01);
        assert_eq!(linear["penalty"]["levels"]["c2"], json!({ "trained": 0.01, "random": 0.01 }));
        assert!(linear.get("k").is_none());
    }

    #[test]
    fn several_judges_stand_under_their_names() {
        let knn = || results(Judge::Knn { k: 20 }, false);
        let linear = results(Judge::Linear { seed: Seed::new(0) }, false);
        assert_eq!(json(&[knn()]), knn().json());
        let (told, lines) = (json(&[knn(), linear]), text(&[knn(), knn()]));
        assert_eq!((&told["knn"], &told["linear"]["objects"]["trained"]), (&knn().json(), &json!(0.5)));
        assert_eq!(lines.lines().count(), 4);
    }

    #[test]
    fn tables_line_up() {
        let text = results(Judge::Knn { k: 20 }, true).text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "kNN (k = 20)            trained  random  pixels");
        assert_eq!(lines[1], "  object crops, C5        0.500   0.250   0.125");
        assert_eq!(lines[2], "  object crops, C2        0.500   0.250");
    }
}
