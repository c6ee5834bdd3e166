//! Lists that the API gives a page at a time.

use std::time::Duration;

use clap::Args;
use serde::de::DeserializeOwned;

use super::say;
use super::task::parse_label;
use crate::client::{Api, Failure};

/// What lists of tasks and of workflows take alike.
#[derive(Args, Clone, Debug)]
pub struct PageArgs {
    /// Only those of this tenant
    #[arg(long)]
    tenant: Option<String>,
    /// Only those with this label; may be given several times
    #[arg(long = "metadata", value_name = "KEY=VALUE", value_parser = parse_label)]
    metadata: Vec<(String, String)>,
    /// Most that are printed
    #[arg(long, default_value_t = 50, allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Where the page before ended
    #[arg(long)]
    cursor: Option<String>,
}

/// A page as the API gives it: its members, and where the next one begins.
pub trait Page: DeserializeOwned {
    type Member;

    fn open(self) -> (Vec<Self::Member>, Option<String>);
}

/// As many as are asked for, and where to go on.
pub struct Listed<T> {
    pub members: Vec<T>,
    cursor: Option<String>,
}

impl PageArgs {
    /// What matches these and `filter` as well, page by page.
    pub async fn list<P: Page>(
        self,
        api: &Api,
        path: &str,
        filter: impl IntoIterator<Item = (&'static str, Option<String>)>,
    ) -> Result<Listed<P::Member>, Failure> {
        let given = filter.into_iter().chain([("tenant", self.tenant)]);
        let given = given.filter_map(|(name, value)| Some((name.to_owned(), value?)));
        let labels = self.metadata.into_iter().map(|(key, value)| (format!("metadata.{key}"), value));
        let filter: Vec<(String, String)> = given.chain(labels).collect();
        let limit = self.limit as usize;
        let (mut members, mut cursor) = (Vec::new(), self.cursor);
        loop {
            let mut query = filter.clone();
            query.push(("limit".to_owned(), (limit - members.len()).to_string()));
            query.extend(cursor.take().map(|cursor| ("cursor".to_owned(), cursor)));
            let (more, next) = api.get::<P>(path, &query, Duration::ZERO).await?.open();
            members.extend(more);
            cursor = next;
            if cursor.is_none() || members.len() >= limit {
                return Ok(Listed { members, cursor });
            }
        }
    }
}

impl<T> Listed<T> {
    /// Says how to see the rest, if there is one.
    pub fn say_rest(&self) {
        if let Some(cursor) = &self.cursor {
            say(&format!("there are more: --cursor {cursor}"));
        }
    }
}
