// Simplified Chinese.

export default {
};
