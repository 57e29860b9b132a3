//! The limits in an L4Policy.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The same as the table of the TOML file. It gives one of the four limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SourceLimitSettings {
    /// Sessions or flows of a source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub sessions: Option<i64>,
    /// New sessions or flows of a source in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub new_per_second: Option<i64>,
    /// New sessions or flows at once, of a source that was silent before. Without it newPerSecond.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: Option<i64>,
    /// UDP: datagrams from a source in a second, and at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub datagrams_per_second: Option<i64>,
    /// Bytes from a source and to it in a second, each way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1_000, max = 10_000_000_000_i64))]
    pub bytes_per_second: Option<i64>,
    /// IPv4 addresses that begin with so many equal bits are one source.
    #[serde(default, rename = "prefixV4", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 32))]
    pub prefix_v4: Option<i64>,
    /// The same for IPv6.
    #[serde(default, rename = "prefixV6", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 128))]
    pub prefix_v6: Option<i64>,
    /// Ranges of clients without a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub except: Option<Vec<String>>,
}

/// The same as the table of the TOML file. It gives sessions, newPerSecond or bytesPerSecond.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LimitSettings {
    /// Sessions or flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub sessions: Option<i64>,
    /// New sessions or flows in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub new_per_second: Option<i64>,
    /// New sessions or flows at once, after a time without any. Without it newPerSecond.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: Option<i64>,
    /// Bytes in a second, each way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1_000, max = 10_000_000_000_i64))]
    pub bytes_per_second: Option<i64>,
}

/// The same as the table of the TOML file. It gives newPerSecond or bytesPerSecond.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointLimitSettings {
    /// New sessions or flows in a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub new_per_second: Option<i64>,
    /// New sessions or flows at once, after a time without any. Without it newPerSecond.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: Option<i64>,
    /// Bytes in a second, each way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1_000, max = 10_000_000_000_i64))]
    pub bytes_per_second: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ListenerLimitSettings {
    #[serde(flatten)]
    pub limit: LimitSettings,
    /// TCP: refuse, or delay, by which clients over the limit wait in the accept queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over: Option<String>,
}
