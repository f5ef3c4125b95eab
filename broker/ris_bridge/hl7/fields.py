"""Names of segments and fields, for people: English as the standard has them, Japanese for the segments that are read
here (JAHIS and SS-MIX2 terms)."""

import importlib
from functools import cache
from typing import Any

# Names of PID-40 and the like are in the later version alone; names of what was withdrawn since, in the earlier.
LIBRARIES = ("hl7apy.v2_5_1", "hl7apy.v2_8_2")
IHE = {"ZDS": "IHE study data"}
IHE_FIELDS = {("ZDS", 1): "Study instance UID"}
# Segment, its name, then its fields from the first on.
JAPANESE = """
MSH メッセージヘッダ: フィールド区切り文字, 符号化文字, 送信アプリケーション, 送信施設, 受信アプリケーション,\
 受信施設, メッセージ日時, セキュリティ, メッセージ型, メッセージ制御ID, 処理ID, バージョンID, 順序番号,\
 継続ポインタ, 受諾肯定応答型, アプリケーション肯定応答型, 国コード, 文字セット, メッセージの主言語,\
 代替文字セット操作法, メッセージプロファイル識別子
MSA メッセージ応答: 肯定応答コード, メッセージ制御ID, テキストメッセージ, 期待順序番号, 遅延肯定応答型, エラー状態
ERR エラー: エラーコードと位置, エラー位置, HL7エラーコード, 重大度, アプリケーションエラーコード,\
 アプリケーションエラーパラメータ, 診断情報, ユーザメッセージ
EVN 事象型: 事象型コード, 記録日時, 計画事象日時, 事象理由コード, 操作者ID, 事象発生日時, 事象施設
PID 患者識別: セットID, 患者ID（外部）, 患者IDリスト, 代替患者ID, 患者氏名, 母親の旧姓, 生年月日, 性別, 患者別名,\
 人種, 患者住所, 郡コード, 電話番号（自宅）, 電話番号（勤務先）, 使用言語, 婚姻状況, 宗教, 患者会計番号,\
 社会保障番号, 運転免許証番号, 母親の識別情報, 民族, 出生地, 多胎フラグ, 出生順位, 市民権, 軍歴, 国籍, 死亡日時,\
 死亡フラグ, 身元不明フラグ, 身元信頼性コード, 最終更新日時, 最終更新施設
PV1 来院情報: セットID, 患者区分, 患者所在場所, 入院区分, 入院予約番号, 前回患者所在場所, 主治医, 紹介医,\
 コンサルト医, 診療科, 一時的所在場所, 入院前検査フラグ, 再入院フラグ, 入院経路, 歩行状態, VIPフラグ, 入院時担当医,\
 患者タイプ, 来院番号
MRG 患者情報マージ: 旧患者IDリスト, 旧代替患者ID, 旧患者会計番号, 旧患者ID, 旧来院番号, 旧代替来院ID, 旧患者氏名
AL1 アレルギー: セットID, アレルゲン型, アレルゲン, 重症度, 反応, 識別日
ORC 共通オーダ: オーダ制御, 依頼者オーダ番号, 実施者オーダ番号, 依頼者グループ番号, オーダ状態, 応答フラグ,\
 数量・タイミング, 親オーダ, トランザクション日時, 入力者, 検証者, 依頼者, 入力場所, コールバック電話番号,\
 オーダ有効日時, オーダ制御コード理由, 入力組織, 入力装置, 発行者, ABNコード, オーダ施設名, オーダ施設住所,\
 オーダ施設電話番号, オーダ提供者住所, オーダ状態修飾子, ABN上書き理由, 実施者予定日時, 守秘コード, オーダタイプ,\
 入力者権限モード
OBR 検査依頼: セットID, 依頼者オーダ番号, 実施者オーダ番号, 検査項目ID, 優先度, 要求日時, 検査日時, 検査終了日時,\
 採取量, 採取者, 検体処置コード, 危険区分コード, 関連臨床情報, 検体受領日時, 検体源, 依頼者, コールバック電話番号,\
 依頼者フィールド1（受付番号）, 依頼者フィールド2（依頼手技ID）, 実施者フィールド1（予約手技ステップID）,\
 実施者フィールド2, 結果報告・状態変更日時, 課金, 診断部門ID, 結果状態, 親結果, 数量・タイミング, 結果コピー先,\
 親オーダ, 移送モード, 検査理由, 主結果判定者, 副結果判定者, 技師, 転写者, 予定日時, 検体容器数, 検体搬送,\
 採取者コメント, 移送手配責任, 移送手配済, 付添要否, 患者移送コメント, 手技コード, 手技コード修飾子,\
 依頼者補足サービス情報, 実施者補足サービス情報, 医学的必要性重複理由, 結果取扱い
TQ1 タイミング・数量: セットID, 数量, 繰返しパターン, 明示時刻, 相対時刻, サービス期間, 開始日時, 終了日時, 優先度,\
 条件テキスト, 指示テキスト, 結合, 実施期間, 総回数
IPC 画像手技管理: 受付番号, 依頼手技ID, 検査インスタンスUID, 予約手技ステップID, モダリティ, プロトコルコード,\
 予約ステーション名, 予約手技ステップ場所, 予約ステーションAEタイトル
ZDS 検査インスタンスUID（IHE）: 検査インスタンスUID
NTE 注釈: セットID, コメント源, コメント, コメント型
OBX 検査結果: セットID, 値型, 検査項目, 検査副ID, 結果値, 単位, 基準値範囲, 異常フラグ, 確率, 異常検査種別, 結果状態,\
 基準範囲有効日, ユーザ定義アクセス点検, 検査日時, 実施者ID, 責任検査者, 検査方法, 装置識別子, 分析日時
SCH 予約情報: 依頼者予約ID, 実施者予約ID, 発生番号, 依頼者グループ番号, スケジュールID, 事象理由, 予約理由, 予約型,\
 予約期間, 予約期間単位, 予約タイミング, 依頼者連絡先人名, 依頼者連絡先電話番号, 依頼者連絡先住所, 依頼者連絡先場所,\
 実施者連絡先人名, 実施者連絡先電話番号, 実施者連絡先住所, 実施者連絡先場所, 入力者, 入力者電話番号, 入力場所,\
 親依頼者予約ID, 親実施者予約ID, 実施者状態コード, 依頼者オーダ番号, 実施者オーダ番号
RGS 資源グループ: セットID, セグメント動作コード, 資源グループID
AIS 予約情報・サービス: セットID, セグメント動作コード, サービスID, 開始日時, 開始オフセット, 開始オフセット単位,\
 期間, 期間単位, 代替許可コード, 実施者状態コード, 依頼者補足サービス情報, 実施者補足サービス情報
AIG 予約情報・一般資源: セットID, セグメント動作コード, 資源ID, 資源型, 資源グループ, 資源数量, 資源数量単位,\
 開始日時, 開始オフセット, 開始オフセット単位, 期間, 期間単位, 代替許可コード, 実施者状態コード
AIL 予約情報・場所資源: セットID, セグメント動作コード, 場所資源ID, 場所型, 場所グループ, 開始日時, 開始オフセット,\
 開始オフセット単位, 期間, 期間単位, 代替許可コード, 実施者状態コード
AIP 予約情報・人的資源: セットID, セグメント動作コード, 人的資源ID, 資源型, 資源グループ, 開始日時, 開始オフセット,\
 開始オフセット単位, 期間, 期間単位, 代替許可コード, 実施者状態コード
FHS ファイルヘッダ: フィールド区切り文字, 符号化文字, 送信アプリケーション, 送信施設, 受信アプリケーション, 受信施設,\
 作成日時, セキュリティ, ファイル名, コメント, ファイル制御ID, 参照ファイル制御ID
FTS ファイルトレーラ: バッチ件数, コメント
BHS バッチヘッダ: フィールド区切り文字, 符号化文字, 送信アプリケーション, 送信施設, 受信アプリケーション, 受信施設,\
 作成日時, セキュリティ, バッチ名, コメント, バッチ制御ID, 参照バッチ制御ID
BTS バッチトレーラ: メッセージ件数, コメント, 合計
"""


def segment_name(name: str, language: str) -> str:
    """Empty where nobody has named it."""
    return (_japanese().get((name, 0)) if language == "ja" else "") or _english_segment(name)


def field_name(name: str, number: int, language: str) -> str:
    """number: PID-3 is 3. Empty where nobody has named it; English where there is no Japanese."""
    return (_japanese().get((name, number)) if language == "ja" else "") or _english_field(name, number)


@cache
def _japanese() -> dict[tuple[str, int], str]:
    """(segment, field) -> name; field 0: of the segment itself."""
    names: dict[tuple[str, int], str] = {}
    for line in JAPANESE.strip().split("\n"):
        title, _, listed = line.partition(": ")
        segment, _, name = title.partition(" ")
        names[segment, 0] = name
        names |= {(segment, n): one.strip() for n, one in enumerate(listed.split(","), 1)}
    return names


@cache
def _english_segment(name: str) -> str:
    """hl7apy names fields, not segments."""
    return IHE.get(name, "") or SEGMENTS.get(name, "")


@cache
def _english_field(name: str, number: int) -> str:
    if (name, number) in IHE_FIELDS:
        return IHE_FIELDS[name, number]
    for library in LIBRARIES:
        segment: Any = importlib.import_module(f"{library}.segments").SEGMENTS.get(name)
        for field, reference, *_ in segment[1] if segment else ():
            if field == f"{name}_{number}":
                return _sentence(reference[3])
    return ""


def _sentence(name: str) -> str:
    """`PATIENT_IDENTIFIER_LIST`: `Patient identifier list`."""
    text = " ".join(ACRONYMS.get(word, word) for word in name.lower().split("_"))
    return text[:1].upper() + text[1:]


ACRONYMS = {word.lower(): word for word in "ID UID AE VIP ABN SSN HL7 OBX IPC MRG".split()}
SEGMENTS = {
    "MSH": "Message header", "MSA": "Message acknowledgment", "ERR": "Error", "EVN": "Event type",
    "PID": "Patient identification", "PD1": "Patient additional demographics", "NK1": "Next of kin",
    "PV1": "Patient visit", "PV2": "Patient visit, additional", "MRG": "Merge patient information",
    "AL1": "Patient allergy", "DG1": "Diagnosis", "IN1": "Insurance", "ORC": "Common order",
    "OBR": "Observation request", "TQ1": "Timing and quantity", "TQ2": "Timing and quantity relationship",
    "IPC": "Imaging procedure control", "NTE": "Notes and comments", "OBX": "Observation result",
    "SCH": "Scheduling activity", "RGS": "Resource group", "AIS": "Appointment, service",
    "AIG": "Appointment, general resource", "AIL": "Appointment, location", "AIP": "Appointment, personnel",
    "FHS": "File header", "FTS": "File trailer", "BHS": "Batch header", "BTS": "Batch trailer",
    "SFT": "Software", "ROL": "Role", "CTI": "Clinical trial", "BLG": "Billing", "FT1": "Financial transaction",
}  # fmt: skip
