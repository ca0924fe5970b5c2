"""What names a person in a report: found in every writing, and not where nobody is named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_cohort import tiny_report

from dataload.identifiers import find_identifiers, redact_identifiers
from dataload.synthetic_findings import draw_findings
from dataload.synthetic_reports import LANGUAGES, write_report

WIDE = {ord(digit): ord(digit) + 0xFEE0 for digit in "0123456789X"}
WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def identity_number(place, born, serial):
    """Return an identity number with the check digit of GB 11643-1999."""
    digits = f"{place}{born:%Y%m%d}{serial:03d}"
    total = sum(weight * int(digit) for weight, digit in zip(WEIGHTS, digits, strict=True))
    return digits + "10X98765432"[total % 11]


@pytest.mark.parametrize(
    ("report", "redacted"),
    [
        # the example of GB 11643-1999, in several writings
        ("身份证11010519491231002X。", "身份证[identity number]。"),
        ("11010519491231002x", "[identity number]"),
        ("110105 19491231 002X", "[identity number]"),
        ("110105-19491231-002X", "[identity number]"),
        ("号码１１０１０５１９４９１２３１００２Ｘ", "号码[identity number]"),
        ("住址 12 11010519491231002X", "住址 12 [identity number]"),
        # fifteen digits, as they were until 1999
        ("130503670401001", "[identity number]"),
        ("ID card no. E12345678", "ID card no. [identity number]"),
        ("护照号：E12345678", "护照号：[identity number]"),
        ("SSN 123-45-6789", "SSN [identity number]"),
        ("手机13800138000", "手机[telephone number]"),
        ("随访 138 0013 8000", "随访 [telephone number]"),
        ("+86 138-0013-8000", "[telephone number]"),
        ("8613800138000", "[telephone number]"),
        ("１３８００１３８０００", "[telephone number]"),
        ("联系电话：010-62345678", "联系电话：[telephone number]"),
        ("Phone: +1 (555) 123-4567", "Phone: [telephone number]"),
        ("姓名：张三 性别：男", "姓名：[name] 性别：男"),
        ("姓　名:张 三 性别:女", "姓　名:[name] 性别:女"),
        ("姓名：张三性别：男", "姓名：[name]性别：男"),
        ("姓名：李亚男，女，45岁", "姓名：[name]，女，45岁"),
        ("姓名：买买提·吐尔逊", "姓名：[name]"),
        ("患者姓名:欧阳娜娜", "患者姓名:[name]"),
        ("姓名|張三|性别|男", "姓名|[name]|性别|男"),
        ("姓名 李四 男", "姓名 [name] 男"),
        ("患者：王小明，男，45岁", "患者：[name]，男，45岁"),
        ("Patient: John Smith, 45", "Patient: [name], 45"),
        ("Name: john smith Age: 45", "Name: [name] Age: 45"),
        ("Patient name: Smith, John. Left eye", "Patient name: [name]. Left eye"),
        ("住院号：ZY00123", "住院号：[admission number]"),
        ("病案号 123456", "病案号 [admission number]"),
        ("登记号:12", "登记号:[admission number]"),
        ("门诊号：0012 3456", "门诊号：[admission number]"),
        ("住院號123456左眼", "住院號[admission number]左眼"),
        ("住院号：123456 2024-03-01", "住院号：[admission number] 2024-03-01"),
        ("MRN 0012345", "MRN [admission number]"),
        ("左眼正常MRN:123审核Doctor:Smith", "左眼正常MRN:[admission number]审核Doctor:[doctor]"),
        ("Patient ID: A-123", "Patient ID: [admission number]"),
        ("Admission no. 445566", "Admission no. [admission number]"),
        ("报告医生：张三 审核医师：李四", "报告医生：[doctor] 审核医师：[doctor]"),
        ("报告医师：张三审核医师：李四", "报告医师：[doctor]审核医师：[doctor]"),
        ("检查医师：李四/王五", "检查医师：[doctor]"),
        ("報告醫師:主任医师 張三", "報告醫師:主任医师 [doctor]"),
        ("医师签名：赵六 2024-03-01", "医师签名：[doctor] 2024-03-01"),
        ("Doctor: Dr. Wang Li. Left eye", "Doctor: [doctor]. Left eye"),
        ("Reported by: J. Smith", "Reported by: [doctor]"),
        ("Signed by Dr. Smith", "Signed by [doctor]"),
    ],
)
def test_what_names_people_is_replaced_and_the_rest_stays(report, redacted):
    assert redact_identifiers(report)[0] == redacted
    assert redact_identifiers(redacted) == (redacted, [])


@pytest.mark.parametrize(
    "report",
    [
        "",
        "患者双眼视物模糊3天",
        "患者：双眼正常。",
        "患者：黄斑水肿。",
        "患者：高度近视",
        "病人：复查",
        "Patient: bilateral drusen",
        "Patient is a 45 year old male",
        # fields without a value, or with one that was blotted out
        "姓名： 性别：男 年龄：",
        "姓名：性别：男",
        "姓名：\n性别：男",
        "姓名：*** 住院号：___",
        "姓名：张某，男",
        "患者姓名已隐去",
        "住院号：无",
        "报告医生：   审核医师：",
        "医师签名：____",
        "Name: Doctor: MRN:",
        "Name: unknown患者正常",
        "Drug name: Latanoprost",
        # what stands in reports that names nobody
        "视力0.6，20/200，C/D 0.3，眼压 14 15 16 17 18 1",
        "-3.25DS/-0.75DC×180",
        "CMT 250 260 270 280um, image 3504x2336",
        "2024-03-01 12:30:45，20240315123456",
        "出生19850312 180cm",
        "1.3.6.1.4.1.25403.345050719074",
        "检查所见：双眼。诊断：黄斑变性。检查：白化病",
        "医生建议定期复查。建议：门诊复查",
        "患者60岁左右,眼底正常",
        "chart review, visit 2, patient number 3",
    ],
)
def test_nobody_is_found_where_nobody_is_named(report):
    assert find_identifiers(report) == []


@given(st.sampled_from(["110105", "440300", "650102"]), st.dates(), st.integers(0, 999), st.data())
def test_identity_numbers_are_told_by_their_check_digit(place, born, serial, data):
    if not 1900 <= born.year < 2100:
        born = born.replace(year=1900 + born.year % 200, day=min(born.day, 28))
    number = identity_number(place, born, serial)
    assert [it.kind for it in find_identifiers(f"左眼{number}正常")] == ["identity number"]
    assert find_identifiers(number.translate(WIDE)) == find_identifiers(number)
    wrong = data.draw(st.sampled_from([it for it in "0123456789X" if it != number[-1]]))
    assert find_identifiers(number[:-1] + wrong) == []


def test_an_identity_number_has_a_place_and_a_date_in_it():
    # right check digits, wrong province or month
    for number in ("990105194912310021", "110105194913310020"):
        total = sum(w * int(d) for w, d in zip(WEIGHTS, number, strict=False))
        assert find_identifiers(number[:17] + "10X98765432"[total % 11]) == []


@given(st.text(alphabet="姓名张三住院号:：1389 []患者医师签Namedr.by\n", max_size=60))
def test_redacting_twice_changes_nothing(text):
    once, _ = redact_identifiers(text)
    assert redact_identifiers(once) == (once, [])


def test_places_are_those_of_the_report_itself():
    report = "ＯＤ　姓名：张三，手机：１３８００１３８０００。"
    found = [(it.kind, report[it.start : it.end]) for it in find_identifiers(report)]
    assert found == [("name", "张三"), ("telephone number", "１３８００１３８０００")]


def test_rendered_reports_name_nobody():
    reports = [tiny_report(number) for number in range(20)]
    for patient in range(1, 200):
        findings = draw_findings(0, patient)
        reports += [
            write_report(findings, language=language, seed=0, patient=patient)
            for language in LANGUAGES
        ]
    assert not [report for report in reports if find_identifiers(report)]


@pytest.mark.parametrize(
    "unit", [" ", "张", "1 ", "住院 ", "姓名：", "name: a ", "王·", "医师 ", "+86"]
)
def test_long_reports_take_no_longer_than_their_length(unit):
    """A report may be a megabyte; a pattern that goes back at each place would never end."""
    find_identifiers(unit * (100_000 // len(unit)))
