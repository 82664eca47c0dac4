//! Sizes as Kubernetes objects write them.

use std::borrow::Cow;
use std::fmt;

use carina_core::{Bytes, ParseBytesError};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A Kubernetes quantity of bytes, kept as it was written: `10Gi`, `1500Mi`, `1073741824`.
///
/// It is read only where it is used, so that one object with a size that is no size doesn't spoil the
/// list that it is in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Quantity(String);

impl Quantity {
    /// The number of bytes.
    ///
    /// # Errors
    /// If the text is no quantity, or a negative one.
    pub fn bytes(&self) -> Result<Bytes, ParseBytesError> {
        self.0.parse()
    }

    /// A plain number, as the figures in GiB are written.
    #[must_use]
    pub fn number(n: u64) -> Self {
        Self(n.to_string())
    }

    /// As it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<Bytes> for Quantity {
    fn from(bytes: Bytes) -> Self {
        Self(bytes.to_quantity())
    }
}

impl From<&str> for Quantity {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl Serialize for Quantity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Quantity;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a quantity")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Quantity, E> {
                Ok(Quantity(text.to_owned()))
            }
            fn visit_u64<E: serde::de::Error>(self, n: u64) -> Result<Quantity, E> {
                Ok(Quantity(n.to_string()))
            }
            fn visit_i64<E: serde::de::Error>(self, n: i64) -> Result<Quantity, E> {
                Ok(Quantity(n.to_string()))
            }
            fn visit_f64<E: serde::de::Error>(self, n: f64) -> Result<Quantity, E> {
                Ok(Quantity(n.to_string()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for Quantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn inline_schema() -> bool {
        true
    }

    /// The schema that Kubernetes itself has for quantities, without the sign that no size has.
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A size: a number of bytes, or a quantity such as 10Gi.",
            "pattern": r"^\+?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
            "x-kubernetes-int-or-string": true,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_texts_are_quantities_and_bad_ones_are_found_only_when_used() {
        for (json, bytes) in [("\"10Gi\"", Some(Bytes::gib(10))), ("4096", Some(Bytes(4096))), ("\"ten\"", None)] {
            let quantity: Quantity = serde_json::from_str(json).unwrap();
            assert_eq!(quantity.bytes().ok(), bytes, "{json}");
        }
        assert!(serde_json::from_str::<Quantity>("-1").unwrap().bytes().is_err());
        assert_eq!(serde_json::to_string(&Quantity::from(Bytes::gib(3))).unwrap(), "\"3Gi\"");
    }
}
