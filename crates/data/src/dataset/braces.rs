//! Names in braces, as WebDataset writes them: `shard-{000000..000099}.tar`, `{train,val}-{0..3}.tar`.

use super::DatasetError;
use std::collections::HashSet;

/// Most names of one list: memory stays in proportion to what a person can have meant.
const MOST: usize = 1_000_000;
/// Bytes of all of them, each taken to be as long as the text.
const MOST_BYTES: usize = 256 << 20;
/// Digits of a number.
const DIGITS: usize = 20;

/// Braces that stand for nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BracesError {
    /// Not of the two forms.
    #[error("`{{{found}}}` is neither a range such as {{000..099}} nor a choice such as {{train,val}}")]
    Group {
        /// What stands between the braces.
        found: String,
    },
    /// An opening brace without its closing one, or one inside another.
    #[error("the braces in `{found}` do not close one after another")]
    Unbalanced {
        /// The text.
        found: String,
    },
    /// A name that comes more than once.
    #[error("the braces stand for `{found}` more than once")]
    Twice {
        /// The name.
        found: String,
    },
    /// More names than anybody has shards.
    #[error("`{found}` stands for more than {MOST} names")]
    TooMany {
        /// The text.
        found: String,
    },
}

/// All names that `text` stands for, in order; `None` where it has no braces.
///
/// # Errors
/// See [`BracesError`].
pub fn expand(text: &str) -> Result<Option<Vec<String>>, BracesError> {
    let mut names = vec![String::new()];
    let mut rest = text;
    let mut found = false;
    while let Some(open) = rest.find('{') {
        let unbalanced = || BracesError::Unbalanced { found: text.to_owned() };
        let (before, group) = (&rest[..open], &rest[open + 1..]);
        let close = group.find('}').ok_or_else(unbalanced)?;
        let (group, after) = (&group[..close], &group[close + 1..]);
        if group.contains('{') || before.contains('}') {
            return Err(unbalanced());
        }
        let too_many = || BracesError::TooMany { found: text.to_owned() };
        let most = MOST.min(MOST_BYTES / text.len()) / names.len();
        let choices = choices(group, most).ok_or_else(too_many)??;
        let one = |name: &String, choice: &String| format!("{name}{before}{choice}");
        names = names.iter().flat_map(|name| choices.iter().map(move |choice| one(name, choice))).collect();
        rest = after;
        found = true;
    }
    if rest.contains('}') {
        return Err(BracesError::Unbalanced { found: text.to_owned() });
    }
    names.iter_mut().for_each(|name| name.push_str(rest));
    let mut seen = HashSet::with_capacity(names.len());
    if let Some(twice) = names.iter().find(|name| !seen.insert(name.as_str())) {
        return Err(BracesError::Twice { found: twice.clone() });
    }
    Ok(found.then_some(names))
}

/// The folder or prefix of all names that `text` stands for, and the names below it; `None` where it has no braces.
pub(crate) fn below(text: &str) -> Result<Option<(&str, Vec<String>)>, DatasetError> {
    let whole = expand(text).map_err(|source| DatasetError::Braces { place: text.to_owned(), source })?;
    let Some(whole) = whole else { return Ok(None) };
    let first = text.find('{').unwrap_or(0);
    let folder = text[..first].rfind('/').map_or(0, |slash| slash + 1);
    let names = whole.iter().map(|name| name.get(folder..).unwrap_or_default().to_owned());
    let folder = &text[..folder];
    Ok(Some((if folder == "/" { folder } else { folder.trim_end_matches('/') }, names.collect())))
}

/// What one group stands for; `None` where that is more than `most`.
fn choices(group: &str, most: usize) -> Option<Result<Vec<String>, BracesError>> {
    if let Some((first, last)) = group.split_once("..") {
        let is_number = |text: &str| text.len() <= DIGITS && text.bytes().all(|b| b.is_ascii_digit());
        let number = |text: &str| is_number(text).then(|| text.parse::<u64>().ok());
        let (Some(Some(from)), Some(Some(to))) = (number(first), number(last)) else {
            return Some(Err(BracesError::Group { found: group.to_owned() }));
        };
        if usize::try_from(to.saturating_sub(from)).is_ok_and(|more| more >= most) {
            return None;
        }
        if from > to {
            return Some(Err(BracesError::Group { found: group.to_owned() }));
        }
        // As shells do: a zero in front of either asks for numbers of one width.
        let padded = |text: &str| text.len() > 1 && text.starts_with('0');
        let width = if padded(first) || padded(last) { first.len().max(last.len()) } else { 0 };
        return Some(Ok((from..=to).map(|number| format!("{number:0width$}")).collect()));
    }
    let parts: Vec<String> = group.split(',').map(str::to_owned).collect();
    match parts.len() {
        1 => Some(Err(BracesError::Group { found: group.to_owned() })),
        count if count > most => None,
        _ => Some(Ok(parts)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        expand(text).unwrap().unwrap()
    }

    #[test]
    fn ranges_and_choices_stand_for_their_names_in_order() {
        assert_eq!(expand("shard-000.tar"), Ok(None));
        assert_eq!(names("a-{8..11}.tar"), ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]);
        assert_eq!(names("a-{0008..10}"), ["a-0008", "a-0009", "a-0010"]);
        assert_eq!(expand("{a,a}.tar"), Err(BracesError::Twice { found: "a.tar".to_owned() }));
        let long = format!("{{{}..1}}", "0".repeat(70_000));
        assert!(matches!(expand(&long), Err(BracesError::Group { .. })));
        let heavy = format!("{}{{0..999999}}", "x".repeat(60_000));
        assert!(matches!(expand(&heavy), Err(BracesError::TooMany { .. })));
        assert_eq!(names("{val,train}-{0..1}.tar"), ["val-0.tar", "val-1.tar", "train-0.tar", "train-1.tar"]);
        assert_eq!(names("{x,}y"), ["xy", "y"]);
        assert_eq!(names("s3://b/s-{000000..000099}.tar").len(), 100);
    }

    #[test]
    fn names_lie_below_the_folder_before_the_first_braces() {
        let of = |text| below(text).unwrap().unwrap();
        let names = |names: [&str; 2]| names.map(str::to_owned).to_vec();
        assert_eq!(of("s3://b/x/s-{0..1}.tar"), ("s3://b/x", names(["s-0.tar", "s-1.tar"])));
        assert_eq!(of("x/{a,b}/0.tar"), ("x", names(["a/0.tar", "b/0.tar"])));
        assert_eq!(of("{a,b}.tar"), ("", names(["a.tar", "b.tar"])));
        assert_eq!(of("/{a,b}.tar"), ("/", names(["a.tar", "b.tar"])));
        assert_eq!(below("x/a.tar").unwrap(), None);
        assert!(below("{").unwrap_err().to_string().contains("do not close"));
    }

    #[test]
    fn what_stands_for_nothing_is_an_error() {
        for text in ["{}", "{a}", "{0..}", "{5..1}", "{-1..1}", "{a..c}", "{0..99999999999999999999}"] {
            assert!(matches!(expand(text), Err(BracesError::Group { .. })), "{text}: {:?}", expand(text));
        }
        for text in ["{0..1", "0..1}", "{a,{b,c}}", "}{0..1}"] {
            assert!(matches!(expand(text), Err(BracesError::Unbalanced { .. })), "{text}");
        }
        for text in ["{0..1000000}", "{0..18446744073709551615}", "{0..9999}{0..9999}"] {
            assert!(matches!(expand(text), Err(BracesError::TooMany { .. })), "{text}");
        }
        assert_eq!(names("{0..999}-{0..999}").len(), MOST);
    }
}
