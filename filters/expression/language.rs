//! Tests of the CEL specification with examples of this project: each is true, fails at evaluation, or is rejected by the
//! checker.

#[cfg(test)]
mod tests {
    use pingora_http::RequestHeader;

    use super::super::*;
    use crate::contract::{Dialect, Facts, Now, RequestCx};

    fn holds(source: &str) -> Result<bool, EvalError> {
        let expression = Expression::compile(source, &Type::Bool, &[]).unwrap_or_else(|e| panic!("{source}: {e}"));
        let request = RequestHeader::build("GET", b"/", None).unwrap();
        let (mut facts, peer) = (Facts::default(), "127.0.0.1".parse().unwrap());
        let wall = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_795_988_096);
        let now = Now { wall, ..Now::read() };
        let cx = RequestCx { request: &request, facts: &mut facts, peer, route: "r", dialect: Dialect::OpenAi, now, shadow: false };
        expression.holds(&Scope::new(&cx))
    }

    #[test]
    fn true_expressions() {
        for source in [
            // Equality: numbers by value, other values by type.
            "null == null && !(null != null) && type(null) == null_type && null in [1, null]",
            "dyn(1) == 1u && dyn(1u) == 1.0 && 1.0 == 1 && dyn(1) != 1.5 && dyn(-1) != 18446744073709551615u",
            "dyn(1) != '1' && dyn(true) != 1 && dyn('a') != b'a' && dyn(null) != 0 && dyn([]) != {} && dyn(null) != false",
            "double('NaN') != double('NaN') && !(double('NaN') == 1.0) && !(double('NaN') < 1.0) && !(double('NaN') >= 1.0)",
            "-0.0 == 0.0 && 9007199254740993 != 9007199254740992.0 && dyn(18446744073709551615u) < 18446744073709551616.0",
            // Lists and maps by their members.
            "[1, 2] == [1, 2] && [1, 2] != [2, 1] && [[1], []] == [[1.0], []] && [] == [] && [1] != [1, 1]",
            "{'a': 1, 'b': [2]} == {'b': [2u], 'a': 1.0} && {'a': 1} != {'a': 2} && {'a': 1} != {'b': 1} && {} == {}",
            "{1: 'x'}[1] == 'x' && {1: 'x'}[dyn(1.0)] == 'x' && {1u: 'x'} == {1: 'x'} && 1u in {1: 2} && !(2 in {1: 2})",
            "{'a': null}.a == null && has({'a': null}.a) && !has({'a': null}.b) && 'a' in {'a': null} && {true: 1}[true] == 1",
            "[1, 2.5, 'x', null, [true]][3] == null && [1, 'x'].size() == 2 && [1] + [2, 3] == [1, 2, 3] && 2 in [1, 2]",
            "[double('NaN')] != [double('NaN')] && !(double('NaN') in [double('NaN')])",
            // Order.
            "false < true && 'a' < 'b' && 'B' < 'a' && b'a' < b'b' && 1 < 2.5 && 2u > 1 && 'é' > 'z'",
            // Arithmetic of 64 bits.
            "7 / 2 == 3 && -7 / 2 == -3 && -7 % 2 == -1 && 7u / 2u == 3u && 7 % -2 == 1 && 2u * 3u - 6u == 0u",
            "1.0 / 0.0 == double('Infinity') && -1.0 / 0.0 < -1e308 && 9223372036854775807 - 1 == 9223372036854775806",
            "b'ab' + b'c' == b'abc' && 'a' + 'é' == 'aé' && size('aé') == 2 && size(b'\\303\\251') == 2 && '\\u00e9' == 'é'",
            // Logic: an operand that decides the result decides it even if the other one fails.
            "(1 / 0 == 1) || true",
            "true || (1 / 0 == 1)",
            "!((1 / 0 == 1) && false) && (true ? true : 1 / 0 == 1)",
            // Macros.
            "[1, 2, 3].exists_one(x, x > 2) && ![1, 2, 2].exists_one(x, x == 2) && ![].exists_one(x, true)",
            "[1, 2, 3].map(x, x > 1, x * 2) == [4, 6] && [1, 2].map(x, [x, x]) == [[1, 1], [2, 2]] && [].all(x, false)",
            "{'a': 1, 'b': 2}.exists(k, k == 'b') && {'a': 1}.all(k, k == 'a') && {'a': 1}.map(k, k + '!') == ['a!']",
            "[1, 2].exists(x, 1 / (x - 1) == 1) && {'a': 1}.filter(k, k != 'a') == [] && [0, 2].all(i, v, v == i * 2)",
            "[5, 6].transformList(i, v, i + v) == [5, 7] && {'a': 1, 'b': 2}.transformMap(k, v, v > 1, v * 2) == {'b': 4}",
            "cel.bind(x, [1, 2], x + x) == [1, 2, 1, 2] && ['a', 'b'].exists(x, ['b'].exists(x, x == 'b'))",
            // Types and conversions.
            "type(1) == int && type(1u) == uint && type(1.0) == double && type('') == string && type(b'') == bytes",
            "type([]) == list && type({}) == map && type(int) == type && type(type(1)) == type && type(true) == bool",
            "type(request.time) == google.protobuf.Timestamp && type(duration('1s')) == google.protobuf.Duration",
            "int('-7') == -7 && int(2.9) == 2 && int(-2.9) == -2 && int(7u) == 7 && uint('7') == 7u && uint(2.9) == 2u",
            "double('1e3') == 1000.0 && double(2u) == 2.0 && string(1.5) == '1.5' && string(-3) == '-3' && string(true) == 'true'",
            "bool('true') && !bool('False') && bool('1') && bytes('é') == b'\\303\\251' && string(b'ab') == 'ab' && string(7u) == '7'",
            // Time.
            "timestamp('2026-11-29T22:00:00+01:00') == timestamp('2026-11-29T21:00:00Z') && duration('90m') == duration('1h30m')",
            "timestamp('2026-11-29T21:00:00Z') + duration('3h') == timestamp('2026-11-30T00:00:00Z') && duration('-1.5s') < duration('0s')",
            "timestamp('2026-03-01T00:00:00Z') - timestamp('2026-02-28T00:00:00Z') == duration('24h') && duration('24h').getHours() == 24",
            "string(duration('1h1.5s')) == '3601.5s' && string(timestamp(0)) == '1970-01-01T00:00:00Z' && int(timestamp(7)) == 7",
            "timestamp('2026-07-01T22:30:00Z').getHours('Europe/Berlin') == 0 && timestamp('2026-12-01T22:30:00Z').getHours('Europe/Berlin') == 23",
            "timestamp('2026-11-29T21:00:00Z').getDayOfWeek() == 0 && timestamp('2026-11-29T21:00:00Z').getDate('+05:30') == 30",
            "timestamp('2026-01-01T00:00:00Z').getMonth() == 0 && timestamp('2026-01-01T00:00:00Z').getFullYear('-01:00') == 2025",
            "request.time == timestamp('2026-11-29T21:34:56Z') && request.time.getMinutes() == 34",
            // Strings.
            "'tacocat'.charAt(3) == 'o' && 'abcabc'.indexOf('c') == 2 && 'abcabc'.indexOf('c', 3) == 5 && 'abcabc'.lastIndexOf('a') == 3",
            "['a', 'b'].join('-') == 'a-b' && 'aBÉ'.lowerAscii() == 'abÉ' && 'ab'.replace('', '_') == '_a_b_' && 'aaa'.replace('a', 'b', 2) == 'bba'",
            "'a,b,c'.split(',', 2) == ['a', 'b,c'] && 'añb'.substring(1, 2) == 'ñ' && ' x\\t'.trim() == 'x' && 'añ'.reverse() == 'ña'",
            "strings.quote('a\"b') == '\"a\\\\\"b\"' && '%s is %.2f of %d (%x)'.format(['a', 1.005, 3, 255]) == 'a is 1.00 of 3 (ff)'",
            "{'a-b': 1}.`a-b` == 1 && 'x'.matches('^[a-z]$') && 'abc'.contains('b') && 'abc'.startsWith('') && 'abc'.endsWith('bc')",
        ] {
            assert_eq!(holds(source), Ok(true), "{source}");
        }
    }

    #[test]
    fn failing_expressions() {
        for (source, error) in [
            ("1 / 0 == 1", EvalError::Range),
            ("1 % 0 == 1", EvalError::Range),
            ("9223372036854775807 + 1 > 0", EvalError::Range),
            ("0u - 1u > 0u", EvalError::Range),
            ("-(-9223372036854775807 - 1) > 0", EvalError::Range),
            ("int(9.3e18) > 0", EvalError::Range),
            ("uint(-1) > 0u", EvalError::Range),
            ("int('1.5') == 1", EvalError::Type),
            ("bool('yes')", EvalError::Type),
            ("string(b'\\377') == ''", EvalError::Type),
            ("[1][1] == 1", EvalError::Range),
            ("[1][-1] == 1", EvalError::Range),
            ("{'a': 1}['b'] == 1", EvalError::Missing),
            ("{'a': 1, 'a': 2} == {}", EvalError::Repeated),
            ("dyn(1) < 'a'", EvalError::Type),
            ("dyn('a') && true", EvalError::Type),
            ("[1, 2].exists_one(x, 1 / (x - 1) == 1)", EvalError::Range),
            ("[1].all(x, x / 0 == 1)", EvalError::Range),
            ("'abc'.charAt(4) == ''", EvalError::Range),
            ("'abc'.substring(2, 1) == ''", EvalError::Range),
            ("'%d'.format(['a']) == ''", EvalError::Type),
            ("timestamp('2026-11-29T21:00:00Z') + duration('87600000h') > request.time", EvalError::Range),
        ] {
            assert_eq!(holds(source), Err(error), "{source}");
        }
    }

    /// CEL allows an implementation to reject these before evaluation.
    #[test]
    fn rejected_expressions() {
        for source in [
            "1 == 'a'",
            "[1] == ['a']",
            "{'a': 1} == {1: 1}",
            "'a' < 1",
            "[1] < [2]",
            "1 + 'a' == 2",
            "5.0 % 2.0 == 1.0",
            "-(1u) == 1",
            "!1",
            "1 && true",
            "true ? 1 : 'a'",
            "x == 1",
            "f(1)",
            "[1].map(1, true) == []",
            "{null: 1} == {}",
            "size(1) == 1",
            "timestamp('tomorrow') > request.time",
            "duration('1 h') > duration('1s')",
            "'a' == 'b' == 1",
            "1 == 1 ==",
        ] {
            assert!(Expression::compile(source, &Type::Bool, &[]).is_err(), "{source}");
        }
    }
}
