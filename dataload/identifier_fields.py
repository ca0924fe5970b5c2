"""The labels of fields that name people in Chinese and English reports, and what follows them.

Each field is a pattern with the group `value`. Patterns are applied to text in which PLAIN has
replaced full-width forms, odd spaces and dashes, and traditional characters one by one. Reports
come from many systems: labels hold spaces (姓 名), values follow each other without a space
(报告医师:张三审核医师:李四), and an empty field is followed by the next label.
"""

import re

__all__ = ["FIELDS", "PLAIN"]

_TRADITIONAL = "醫師號報檢審診歷簽電話機聯繫證護錄門攝會閱讀齡"
_SIMPLIFIED = "医师号报检审诊历签电话机联系证护录门摄会阅读龄"
_TRADITIONAL += "張劉陳楊趙吳孫馬鄭羅許韓馮鄧蕭葉呂盧鍾賈鄒龍賀顧龔萬錢戴嚴喬賴龐蘇魯寧關閻項盧陽衛"
_SIMPLIFIED += "张刘陈杨赵吴孙马郑罗许韩冯邓萧叶吕卢钟贾邹龙贺顾龚万钱戴严乔赖庞苏鲁宁关阎项卢阳卫"
PLAIN = {0xFF01 + k: 0x21 + k for k in range(94)}
PLAIN |= dict.fromkeys([*range(0x2000, 0x2010), 0xA0, 0x202F, 0x2060, 0x3000, 0xFEFF], " ")
PLAIN |= dict.fromkeys([*range(0x2010, 0x2016), 0x2212], "-")
PLAIN |= dict.fromkeys(map(ord, "\u2236\ufe55\ufe30\ufe13"), ":")
PLAIN |= dict(zip(map(ord, _TRADITIONAL), _SIMPLIFIED, strict=True))


def _any(*words):
    """Return a pattern of the words, which are separated by spaces."""
    return "(?:" + "|".join(" ".join(words).split()) + ")"


# where an English word begins and ends: beside a digit or a Chinese character, too
_START, _END = "(?<![a-z])", "(?![a-z])"
_HAN = "\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_DOT = "·•・‧"
# the families of nearly everybody in China, for labels that are followed by other things as well
_FAMILIES = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何林高罗郑梁谢宋唐许韩邓冯曹彭曾肖萧田董潘袁蔡蒋"
    "余于杜叶程魏苏吕丁任卢姚沈钟姜崔谭陆范汪廖石金韦贾夏付傅方邹熊白孟秦邱侯江尹薛闫"
    "阎段雷龙黎史陶贺毛郝顾龚邵万覃武钱戴严莫孔向汤康乔赖文庞樊殷施葛洪安颜倪牛温芦季"
    "俞章鲁柴华柳岳尚梅宁翟詹欧米靳管辛焦冉耿关骆柏左涂伍鲍童祁费裴霍岑凌甘纪包舒屈项"
    "祝聂晏尤盛阮柯桂楼简阳卫滕穆解邢景桑臧佟郎鞠迟苗路冷宫栾谷艾闵蒲隋邬车喻古游兰敖"
    "巫申司瞿匡房仇戚荣曲齐丛粟谈商娄褚寇庄晋邸"
)
_FAMILY = _any("欧阳 上官 司马 诸葛 皇甫 司徒 令狐 慕容 尉迟", f"[{_FAMILIES}]")
# what begins like a family's name and is an eye's matter
_NO_FAMILY = _any(
    "左[眼侧] 黄斑 高[度血眼龄] 白[内斑细化] 屈光 于[今昨前本我当] 曾[有因经于行患] 安静 孔源"
)
# where the value of a field ends without a space: the next label, or the report's own words
_NEXT = _any(
    r"姓\s*名 性\s*别 年\s*龄 出生 民族 籍贯 职业 科[室别] 病[区案历人] 床[号位] 住院 门诊 登记",
    "就诊 检查 申请 送检 报告 审核 复核 诊断 临床 影像 日期 时间 电话 手机 联系 [地住]址 身份 证件",
    "签[名字] 医[生师] 主[治任诉] 患者 先生 女士 [左右双]眼 眼[底部别压科]",
    r"[男女]性?(?!\W{0,3}[男女])(?:\W|[0-9]|$)",
)
_NEXT_WORD = _any(
    "age sex gender dob date birth mrn ssn id no number address phone tel mobile doctor physician",
    "name left right both bilateral o[dsu] eyes? reports? reported reviewed signed patient exam",
    "admission diagnosis findings? impression fundus conclusion department hospital male female",
)
# what stands for a value that is not there or must not be seen
_BLANK = (
    _any("无 不详 未知 匿名 保密 略 已?隐去 已?脱敏")
    + rf"(?![{_HAN}])|[{_HAN}]?(?:某|[*x×]+)|"
    + _any("none nil unknown anonymous anonymi[sz]ed redacted withheld n/?a not")
    + _END
)

_WORD = r"(?:(?:dr|prof|mrs?|ms|[a-z])\.|[a-z][a-z'’-]*)"
_LATIN_NAME = rf"(?!{_NEXT_WORD}{_END}){_WORD}(?:,? {{1,2}}(?!{_NEXT_WORD}{_END}){_WORD}){{0,3}}"
# 张 三 with a space, or characters as far as the name can go
_SPACED_NAME = rf"(?!{_NEXT})[{_HAN}] {{1,2}}(?![男女])[{_HAN}](?![{_HAN}])"
_HAN_NAME = rf"(?:{_SPACED_NAME}|(?:(?!{_NEXT})[{_HAN}{_DOT}]){{1,20}})"
_ANY_NAME = rf"(?!{_BLANK})(?:{_HAN_NAME}|{_LATIN_NAME})"
# for labels that other things follow as well: a family's name and one or two characters
_FAMILY_NAME = (
    rf"(?!{_BLANK})"
    rf"(?:(?!{_NO_FAMILY}){_FAMILY}[{_HAN}]{{1,2}}|[{_HAN}]{{1,12}}[{_DOT}][{_HAN}{_DOT}]{{1,20}})"
    rf"(?=$|[^{_HAN}]|{_NEXT})"
)
# two or more doctors sign
_NAMES = rf"{_ANY_NAME}(?: ?[/、, ] ?{_FAMILY_NAME})*"
_TWO_WORDS = r"(?-i:[A-Z][a-z'’-]+,? {1,2}(?:[A-Z]\. )?[A-Z][a-z'’-]+)"
_CODE = r"(?=[a-z_/-]{0,12}[0-9])[a-z0-9][a-z0-9_/-]"
# digits may go on in groups, unless those begin a date
_NUMBER = rf"{_CODE}*(?: [0-9]{{3,}}(?![0-9]*[-/.:年]))*"
_TELEPHONE_NUMBER = r"[+(]?[0-9][0-9() -]{4,18}[0-9]"

_MARK = r"[ \t]*[:=|][ \t|]*"
_NO_MARK = r"[ \t]*"
_TITLE = r"(?:(?:副?主任|主治|住院)医[生师][ \t]*)?"
_ORDINAL = r"(?: *(?:no\.?|number|num\.?|#))?"
_NAME = rf"姓 {{0,4}}名|名字|{_START}(?:sur)?name"
# whose name it is not
_OTHERS = ("drug", "device", "file", "camera", "brand", "medication", "study", "test")
_OTHER_NAMES = "".join(f"(?<!{word} )" for word in _OTHERS)
_PATIENT = _any("患者 病人 受检者 被检者 受试者")
_DOCTOR = (
    _any(
        "报告 审核 复核 审签 签发 诊断 检查 操作 记录 录入 书写 送检 申请 阅片 读片 会诊",
        "摄影 拍摄 拍片 审阅 打印 主治 住院 主任 经治 责任 接诊 管床 主管 手术",
    )
    + " {0,4}(?:医[生师]|技[师士]|大夫|人员?|者) {0,4}(?:签[名字]|姓名)?"
)
_SIGNED = rf"(?:(?:医[生师]|技师|大夫|护士) {{0,4}})?签[名字]|{_START}signature"
_DOCTOR_ENGLISH = _START + _any(
    "doctor physician ophthalmologist radiologist surgeon consultant optometrist technician",
    "photographer",
)
_SIGNED_BY = (
    _START
    + _any(
        "reported reviewed signed verified approved dictated examined interpreted performed read",
        "prepared authori[sz]ed referred",
    )
    + " by"
)
_COLLEAGUE = _any("医[生师] 大夫 护士 主任 审核 复核 审签 签发 阅片 读片")
_CARD = (
    _any(
        "住院 门诊 病[案历] 登记 就诊 挂号 急诊 体检 检查 影像 放射 超声 病理 标本 档案",
        "患者 病人 医保 诊疗",
    )
    + f" {{0,4}}(?:卡|流水|登记)?(?:编号|号码?| {{0,4}}id){_ORDINAL}"
)
_CARD_ENGLISH = (
    rf"{_START}(?:mrn|p(?:atien)?t(?:'s)? id|(?:medical record|hospital|patient|admission|inpatient"
    r"|outpatient|registration|record|chart|accession|visit|encounter)"
    rf" *(?:no{_END}\.?|number|num|#|id{_END})|{_START}id(?=[ \t]*[:=|])){_ORDINAL}"
)
_CARDS = f"{_CARD}|{_CARD_ENGLISH}"
_IDENTITY = (
    r"(?:身份证|证件|护照|社会保障|社保)件?(?:号码?)?"
    rf"|{_START}(?:passport|national id|identity card|id card|ssn){_ORDINAL}"
)
_TELEPHONE = (
    "(?:电话|手机|联系方式)(?:号码?)?"
    rf"|{_START}(?:tel(?:ephone)?|(?:mobile|cell) ?phone|phone|mobile|cell|fax)\.?{_ORDINAL}"
)


def _field(kind, label, value, mark=_MARK):
    return kind, re.compile(rf"(?:{label}){mark}(?P<value>{value})", re.IGNORECASE)


FIELDS = (
    _field("name", rf"{_OTHER_NAMES}(?:{_NAME})(?: ?\([^)]{{0,12}}\))?", _ANY_NAME),
    _field("name", "姓 {0,4}名", _FAMILY_NAME, mark="[ \t]+"),
    _field("name", _PATIENT, _FAMILY_NAME, mark=rf"(?:{_MARK}|[ \t]*\()"),
    _field("name", rf"{_START}patient|{_PATIENT}", rf"(?!{_NEXT_WORD}{_END}|{_BLANK}){_TWO_WORDS}"),
    _field("admission number", _CARDS, _NUMBER, mark=rf"{_MARK}(?:no\.?:? *)?"),
    # without a mark before it, a number is a long one
    _field("admission number", _CARDS, rf"{_CODE}{{3,}}", mark=_NO_MARK),
    _field(
        "doctor",
        rf"{_DOCTOR}|{_SIGNED}|{_DOCTOR_ENGLISH}|{_SIGNED_BY}",
        _NAMES,
        mark=_MARK + _TITLE,
    ),
    _field("doctor", _SIGNED_BY, rf"dr\.? {_LATIN_NAME}", mark=" "),
    _field("doctor", _COLLEAGUE, _FAMILY_NAME),
    _field("identity number", _IDENTITY, rf"{_CODE}{{3,}}", mark=rf"(?:{_MARK}|{_NO_MARK})"),
    _field("telephone number", _TELEPHONE, _TELEPHONE_NUMBER, mark=rf"(?:{_MARK}|{_NO_MARK})"),
)
